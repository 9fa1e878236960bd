"""Checks of the directory itself: the index against the files, what should not lie there, what is pointed to."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from ling.checkpoint.doctor.evidence import CONFIG, Evidence
from ling.checkpoint.doctor.finding import Finding, RebuildIndex, Repair, error, listed, note, warning
from ling.checkpoint.source import INDEX_NAME

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
"""The published name of one of several files."""
_BY_HAND = "remove the files that do not belong"


def unreadable(seen: Evidence) -> Iterator[Finding]:
    """Files that cannot be read, found while gathering."""
    for finding in seen.unreadable:
        mended = _rebuild(seen) if finding.where == INDEX_NAME else None
        yield finding if mended is None else dataclasses.replace(finding, fix="write it anew", repair=mended)
    if not any(name.endswith(".safetensors") for name in seen.files):
        yield error(str(seen.directory.name), "there is no .safetensors file", "copy the weights")


def index(seen: Evidence) -> Iterator[Finding]:
    """The index names exactly the tensors of the files, each once, and their true size."""
    yield from _duplicates(seen)
    if seen.index is None:
        if len(seen.headers) > 1 and INDEX_NAME not in seen.files:
            yield error(INDEX_NAME, f"{len(seen.headers)} files but no index", "write one", _rebuild(seen))
        return
    named = seen.index.get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        yield error(INDEX_NAME, "it has no weight_map of file names", "write it anew", _rebuild(seen))
        return
    if seen.absent:
        yield error(INDEX_NAME, f"it names {listed(seen.absent)}, which is not there", "copy the file")
    yield from _entries(seen, named)
    yield from _left_over(seen, named)
    yield from _total_size(seen)


def pickles(seen: Evidence) -> Iterator[Finding]:
    """Weights as pickles run code when they are loaded."""
    if found := [name for name in seen.files if name.endswith(_PICKLES)]:
        yield warning(
            listed(found),
            "a pickle runs what it likes when it is loaded; some readers prefer it to safetensors",
            "remove it: the safetensors files hold the weights"
            if seen.headers
            else "get the safetensors files of the model",
        )


def format_mark(seen: Evidence) -> Iterator[Finding]:
    """transformers refuses files whose header does not say who wrote them."""
    if unmarked := [name for name, header in seen.headers.items() if header.metadata.get("format") != "pt"]:
        yield warning(
            listed(unmarked),
            'the header lacks {"format": "pt"}, without which transformers 4 refuses the file',
            "write the checkpoint again with ling convert",
        )


def auto_map(seen: Evidence) -> Iterator[Finding]:
    """`auto_map` names Python files for readers that run a checkpoint's code; ling never does."""
    mapping = seen.raw_config.get("auto_map")
    if not mapping:
        yield note(
            f"{CONFIG}: auto_map",
            "absent: transformers, vLLM and SGLang know this model only by its remote code",
            "for those, put the published modeling and configuration files beside it and name them here",
        )
        return
    modules = sorted({_module(target) for target in (mapping.values() if isinstance(mapping, dict) else [mapping])})
    if lost := [name for name in modules if name not in seen.files and "--" not in name]:
        yield warning(
            f"{CONFIG}: auto_map",
            f"it points to {listed(lost)}, which is not there: trust_remote_code fails",
            "copy the file from the model's repository, or remove auto_map",
        )


def _module(target: Any) -> str:
    first = target[0] if isinstance(target, list) and target else target
    return f"{str(first).rpartition('.')[0]}.py"


def _duplicates(seen: Evidence) -> Iterator[Finding]:
    twice = [key for key, names in seen.places.items() if len(names) > 1]
    if twice:
        yield error(
            listed(sorted({name for key in twice for name in seen.places[key]})),
            f"{len(twice)} tensors lie in two files, such as {twice[0]}: which one counts depends on the reader",
            _BY_HAND,
        )


def _entries(seen: Evidence, named: dict[str, str]) -> Iterator[Finding]:
    wrong = [key for key, name in named.items() if name in seen.headers and key not in seen.headers[name].tensors]
    if wrong:
        yield error(
            INDEX_NAME, f"it places {listed(wrong)} in a file that does not hold it", "write it anew", _rebuild(seen)
        )
    used = set(named.values())
    silent = [key for key, names in seen.places.items() if key not in named and used & set(names)]
    if silent:
        yield error(INDEX_NAME, f"it leaves out {listed(silent)}", "write it anew", _rebuild(seen))


def _left_over(seen: Evidence, named: dict[str, str]) -> Iterator[Finding]:
    extra = sorted(set(seen.headers) - set(named.values()))
    if shards := [name for name in extra if SHARD.fullmatch(name)]:
        yield error(INDEX_NAME, f"it leaves out the file {listed(shards)}", "write it anew", _rebuild(seen))
    if others := [name for name in extra if not SHARD.fullmatch(name)]:
        yield warning(
            listed(others), "the index does not name this file; readers that open every file load it as well", _BY_HAND
        )


def _total_size(seen: Evidence) -> Iterator[Finding]:
    assert seen.index is not None
    metadata = seen.index.get("metadata")
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    size = sum(tensor.nbytes for tensor in seen.stored.values())
    if seen.whole and told != size:
        shown = f"{told:,}" if isinstance(told, int) else "missing"
        yield warning(
            f"{INDEX_NAME}: total_size",
            f"it is {shown}; the tensors have {size:,} bytes",
            "write it anew",
            _rebuild(seen),
        )


def _rebuild(seen: Evidence) -> Repair | None:
    """An index can be written from the files if all are whole and no tensor lies in two of them."""
    clear = seen.whole and seen.headers and all(len(names) == 1 for names in seen.places.values())
    return RebuildIndex() if clear else None
