"""Damaged and hostile checkpoints: whatever a file says, reading works or refuses in one line.

Never another exception, never memory by a header's word (the process may grow by 400 MiB here), never a call that a
pickle asks for.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling.checkpoint import load_model, save_model
from ling.checkpoint.convert import to_megatron, to_training
from ling.checkpoint.dcp import FACTS_NAME
from ling.checkpoint.doctor import examine, examine_weights, mend
from ling.checkpoint.megatron import COMMON_NAME, FIRST_ITERATION
from ling.checkpoint.merge import MergedPieces
from ling.checkpoint.names import published_pieces
from ling.checkpoint.pieces import TOKENIZER_FILES, open_pieces
from ling.checkpoint.save import ExportFormat
from ling.checkpoint.source import INDEX_NAME
from ling.compat.handover import plan_handover, write_handover
from ling.engine.bundled import bundled_directory
from ling.errors import CheckpointError, ConfigError
from ling.testing.models import tiny_model
from ling.tokenizer import Tokenizer

ROOM = 400 * 2**20
CANARY = "executed"
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

HUGE = st.sampled_from([2**31, 2**33, 2**40, 2**62, 2**63, 2**64, 10**30, -1, -(2**63)])
DEEP = st.integers(50, 3000).map(lambda n: json.loads("[" * 50 + "]" * 50) if n < 1000 else "[" * n)
NASTY = st.one_of(
    HUGE, st.none(), st.booleans(), st.integers(-2, 300), st.floats(), st.text(max_size=8), DEEP,
    st.sampled_from([[], {}, [[]], {"type": "yarn"}, "F64", "F8_E4M3", "../x", "/etc/passwd", "\0", "\n", [1, 2, 3]]),
    st.lists(HUGE, max_size=3),
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each kind."""
    root = tmp_path_factory.mktemp("whole")
    model = tiny_model(
        num_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        num_hidden_layers=2,
        vocab_size=264,
    )
    save_model(model, root / "bf16", max_shard_bytes=60_000)
    save_model(model, root / "fp8", export=ExportFormat(precision="float8"), max_shard_bytes=60_000)
    to_training(open_pieces(root / "bf16"), root / "training")
    to_megatron(open_pieces(root / "bf16"), root / "megatron")
    put_small_tokenizer(root / "bf16")
    assert len(list((root / "bf16").glob("*.safetensors"))) > 1
    return root


def put_small_tokenizer(directory: Path) -> None:
    """Write a tokenizer of the 256 bytes and the special tokens."""
    tree = json.loads((bundled_directory() / "tokenizer.json").read_text(encoding="utf-8"))
    tree["model"]["merges"] = []
    tree["model"]["vocab"] = {token: id for token, id in tree["model"]["vocab"].items() if len(token) == 1}
    for id, token in enumerate(tree["added_tokens"], start=256):
        token["id"] = id
    Tokenizer(json.dumps(tree)).save(directory)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let the process grow by `ROOM` and no more."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def damaged(whole: Path, kind: str, name: str, content: bytes) -> Iterator[Path]:
    """Yield a copy of a checkpoint in which one file has another content."""
    target = whole.parent / "damaged"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole / kind, target, copy_function=os.link)
    (target / name).unlink(missing_ok=True)
    (target / name).write_bytes(content)
    try:
        yield target
    finally:
        assert not list(whole.parent.rglob(CANARY)), "code in a checkpoint was executed"
        shutil.rmtree(target, ignore_errors=True)


def read_all(directory: Path) -> None:
    source = open_pieces(directory)
    for piece in published_pieces(source.config):
        source.dtype(piece)
        source.read(piece)


def examine_all(directory: Path) -> None:
    found = examine(directory)
    assert all(f.what and (f.what + f.where + f.fix).isprintable() for f in found), found
    mend(directory, found)
    examine_weights(directory)


def must_answer(directory: Path) -> None:
    """Read everything in every way; only the two errors of a person's input may come out, on one line."""
    refusals = []
    for way in (read_all, load_model, examine_all):
        try:
            way(directory)
        except (CheckpointError, ConfigError) as error:
            refusals.append(str(error))
    assert not [line for line in refusals if "\n" in line or len(line) > 700], refusals


# ---- mutations ----


def paths_of(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [prefix, *(path for key, value in items for path in paths_of(value, (*prefix, key)))]


def mutated(tree: Any, draw: Callable[[Any], Any], times: int = 2) -> Any:
    """Return a JSON tree with some values replaced, removed or copied over each other."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, times))):
        path = draw(st.sampled_from(paths_of(tree)))
        if not path:
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
        if action == "replace":
            parent[path[-1]] = draw(NASTY)
        elif action == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=10))] = parent.pop(path[-1])
    return tree


def spoilt(content: bytes, draw: Callable[[Any], Any], within: int | None = None) -> bytes:
    """Return bytes with some flipped, cut off or inserted, in the first `within`."""
    spoilt = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(len(spoilt), within or len(spoilt)) - 1)))
        action = draw(st.sampled_from(["flip", "cut", "insert", "zero", "drop"]))
        if action == "flip" and spoilt:
            spoilt[at] = draw(st.integers(0, 255))
        elif action == "cut":
            del spoilt[at:]
        elif action == "insert":
            spoilt[at:at] = draw(st.binary(max_size=9))
        elif action == "zero":
            spoilt[at : at + 4] = bytes(4)
        else:
            del spoilt[at : at + draw(st.integers(1, 9))]
    return bytes(spoilt)


def to_json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(header: Any, data: bytes) -> bytes:
    encoded = to_json(header)
    return len(encoded).to_bytes(8, "little") + encoded + data


# ---- safetensors ----


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["bf16", "fp8"]))
def test_headers_may_say_anything(whole: Path, data, kind: str) -> None:
    file = data.draw(st.sampled_from(sorted((whole / kind).glob("*.safetensors"))))
    header, values = header_of(file)
    with damaged(whole, kind, file.name, with_header(mutated(header, data.draw, 4), values)) as directory:
        must_answer(directory)


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["bf16", "fp8"]))
def test_safetensors_bytes_may_be_spoilt(whole: Path, data, kind: str) -> None:
    file = data.draw(st.sampled_from(sorted((whole / kind).glob("*.safetensors"))))
    content = file.read_bytes()
    within = 8 + int.from_bytes(content[:8], "little")
    with damaged(whole, kind, file.name, spoilt(content, data.draw, within)) as directory:
        must_answer(directory)


@pytest.mark.parametrize("length", [0, 1, 2**20, 10**8, 10**8 + 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
def test_lengths_of_headers_are_not_believed(whole: Path, length: int) -> None:
    file = min((whole / "bf16").glob("*.safetensors"))
    with damaged(whole, "bf16", file.name, length.to_bytes(8, "little") + file.read_bytes()[8:]) as directory:
        must_answer(directory)


def test_files_may_end_anywhere(whole: Path) -> None:
    file = min((whole / "fp8").glob("*.safetensors"))
    header, values = header_of(file)
    content = file.read_bytes()
    start = len(content) - len(values)
    ends = {start + x for told in header.values() if "data_offsets" in told for x in told["data_offsets"]}
    cuts = {0, 1, 7, 8, 9, start, *ends}
    for cut in sorted({cut + d for cut in cuts for d in (-1, 0, 1) if 0 <= cut + d < len(content)})[::2]:
        with damaged(whole, "fp8", file.name, content[:cut]) as directory:
            with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
                open_pieces(directory)
            assert any(finding.where == file.name for finding in examine(directory))


# ---- JSON ----


@FUZZ
@given(
    data=st.data(), name=st.sampled_from([INDEX_NAME, "config.json", "generation_config.json", "tokenizer_config.json"])
)
def test_json_files_may_say_anything(whole: Path, data, name: str) -> None:
    tree = json.loads((whole / "bf16" / name).read_text(encoding="utf-8"))
    with damaged(whole, "bf16", name, to_json(mutated(tree, data.draw, 3))) as directory:
        must_answer(directory)


@pytest.mark.parametrize("key", ["weight_map", "architectures", "rope_scaling", "unknown", "torch_dtype"])
def test_names_without_end_are_cut_off(whole: Path, key: str) -> None:
    name = INDEX_NAME if key == "weight_map" else "config.json"
    tree = json.loads((whole / "bf16" / name).read_text(encoding="utf-8"))
    long = "[" * 3000
    tree |= {
        "weight_map": {"weight_map": dict.fromkeys(tree.get("weight_map", {}), long)},
        "architectures": {"architectures": [long] * 100},
        "rope_scaling": {"rope_scaling": {"type": "yarn", "factor": 2, **{f"{long}{i}": 1 for i in range(100)}}},
        "unknown": {f"{long}{i}": 1 for i in range(100)},
        "torch_dtype": {"torch_dtype": long},
    }[key]
    with damaged(whole, "bf16", name, to_json(tree)) as directory:
        must_answer(directory)


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["bf16", "fp8"]))
def test_configurations_may_say_anything(whole: Path, data, kind: str) -> None:
    tree = json.loads((whole / kind / "config.json").read_text(encoding="utf-8"))
    extra = data.draw(st.sampled_from([{}, {"llm_config": dict(tree)}, {"quantization_config": data.draw(NASTY)}]))
    with damaged(whole, kind, "config.json", to_json(mutated({**tree, **extra}, data.draw, 3))) as directory:
        must_answer(directory)


@FUZZ
@given(data=st.data(), name=st.sampled_from([INDEX_NAME, "config.json"]))
def test_json_files_may_be_spoilt(whole: Path, data, name: str) -> None:
    with damaged(whole, "bf16", name, spoilt((whole / "bf16" / name).read_bytes(), data.draw)) as directory:
        must_answer(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 10**9, "n_group": 0, "topk_group": 0},
        {"num_hidden_layers": 10**5},
        {"num_nextn_predict_layers": 10**5},
        {"vocab_size": 10**9, "hidden_size": 10**9},
        {"num_attention_heads": 10**9, "head_dim": 10**9, "num_key_value_heads": 1},
        {"num_experts": 10**6, "n_group": 0, "topk_group": 0, "num_hidden_layers": 10**5},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("kind", ["bf16", "training"])
def test_sizes_are_held_against_the_files(whole: Path, changes: dict[str, int], kind: str) -> None:
    name = "config.json" if kind == "bf16" else FACTS_NAME
    tree = json.loads((whole / kind / name).read_text(encoding="utf-8"))
    tree = {**tree, **changes} if kind == "bf16" else {**tree, "model": {**tree["model"], **changes}}
    with damaged(whole, kind, name, to_json(tree)) as directory:
        must_answer(directory)


@pytest.mark.parametrize("name", [INDEX_NAME, "config.json", "tokenizer.json", "generation_config.json"])
def test_files_that_are_holes_are_not_read(whole: Path, name: str) -> None:
    with damaged(whole, "bf16", name, b"") as directory:
        os.truncate(directory / name, 2**40)
        must_answer(directory)


def test_a_pipe_among_the_files_is_not_waited_for(whole: Path) -> None:
    file = min((whole / "bf16").glob("*.safetensors"))
    with damaged(whole, "bf16", file.name, b"") as directory:
        (directory / file.name).unlink()
        os.mkfifo(directory / file.name)
        must_answer(directory)


# ---- tokenizers ----


@FUZZ
@given(data=st.data())
def test_tokenizers_may_say_anything(whole: Path, data) -> None:
    tree = json.loads((whole / "bf16/tokenizer.json").read_text(encoding="utf-8"))
    with damaged(whole, "bf16", "tokenizer.json", to_json(mutated(tree, data.draw, 3))) as directory:
        must_answer(directory)


@FUZZ
@given(data=st.data())
def test_tokenizers_may_be_spoilt(whole: Path, data) -> None:
    content = spoilt((whole / "bf16/tokenizer.json").read_bytes(), data.draw)
    with damaged(whole, "bf16", "tokenizer.json", content) as directory:
        must_answer(directory)


@FUZZ
@given(data=st.data(), name=st.sampled_from(TOKENIZER_FILES))
def test_files_of_the_tokenizer_may_hold_any_bytes(whole: Path, data, name: str) -> None:
    with damaged(whole, "bf16", name, data.draw(st.binary(max_size=40))) as directory:
        must_answer(directory)


@pytest.mark.parametrize("id", [2**22, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("kind", ["vocab", "added"])
def test_ids_of_tokens_are_not_believed(whole: Path, id: int, kind: str) -> None:
    tree = json.loads((whole / "bf16/tokenizer.json").read_text(encoding="utf-8"))
    tree["model"]["vocab"]["zz"] = id
    if kind == "added":
        tree["added_tokens"].append({**tree["added_tokens"][0], "content": "zz", "id": id})
    with damaged(whole, "bf16", "tokenizer.json", to_json(tree)) as directory:
        with pytest.raises(CheckpointError, match=r"numbers a token [\d,]+: tokenizer\.json is damaged"):
            Tokenizer.from_directory(directory)
        must_answer(directory)


# ---- merging and handing over ----


def merge_and_export(directory: Path, whole: Path) -> None:
    """Merge a damaged checkpoint with a whole one, in either place, and hand it over; as `must_answer`."""
    refusals = []
    target = whole.parent / "exported"

    def merge(*sources: Path) -> None:
        merged = MergedPieces([open_pieces(source) for source in sources], [0.5, 0.5])
        for piece in published_pieces(merged.config):
            merged.read(piece)

    def export() -> None:
        write_handover(plan_handover(open_pieces(directory), "vllm", "exported"), target)

    for way in (lambda: merge(directory, whole / "bf16"), lambda: merge(whole / "bf16", directory), export):
        try:
            way()
        except (CheckpointError, ConfigError) as error:
            refusals.append(str(error))
            assert not target.exists()
        finally:
            shutil.rmtree(target, ignore_errors=True)
    assert not [line for line in refusals if "\n" in line or len(line) > 700], refusals
    assert not list(whole.parent.glob(".*partial*"))


FEW = settings(FUZZ, max_examples=25)


@FEW
@given(data=st.data(), name=st.sampled_from(["config.json", "tokenizer.json", INDEX_NAME, "generation_config.json"]))
def test_what_is_merged_or_exported_may_say_anything(whole: Path, data, name: str) -> None:
    tree = json.loads((whole / "bf16" / name).read_text(encoding="utf-8"))
    with damaged(whole, "bf16", name, to_json(mutated(tree, data.draw, 3))) as directory:
        merge_and_export(directory, whole)


@FEW
@given(data=st.data())
def test_headers_of_what_is_merged_or_exported_may_say_anything(whole: Path, data) -> None:
    file = data.draw(st.sampled_from(sorted((whole / "bf16").glob("*.safetensors"))))
    header, values = header_of(file)
    with damaged(whole, "bf16", file.name, with_header(mutated(header, data.draw, 4), values)) as directory:
        merge_and_export(directory, whole)


@FEW
@given(data=st.data(), kind=st.sampled_from(["training", "megatron"]))
def test_distributed_checkpoints_that_are_merged_or_exported_may_be_spoilt(whole: Path, data, kind: str) -> None:
    name, content = pickled_metadata(whole, kind)
    with damaged(whole, kind, name, spoilt(content, data.draw)) as directory:
        merge_and_export(directory, whole)


# ---- distributed checkpoints ----


class Execute:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def pickled_metadata(whole: Path, kind: str) -> tuple[str, bytes]:
    name = ".metadata" if kind == "training" else f"{FIRST_ITERATION}/.metadata"
    return name, (whole / kind / name).read_bytes()


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["training", "megatron"]))
def test_metadata_may_be_spoilt(whole: Path, data, kind: str) -> None:
    name, content = pickled_metadata(whole, kind)
    with damaged(whole, kind, name, spoilt(content, data.draw)) as directory:
        must_answer(directory)


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["training", "megatron"]))
def test_metadata_may_claim_any_size_and_place(whole: Path, data, kind: str) -> None:
    name, content = pickled_metadata(whole, kind)
    metadata = pickle.loads(content)
    tensors = sorted(metadata.state_dict_metadata)
    for key in data.draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3)):
        entry = metadata.state_dict_metadata[key]
        claim = data.draw(st.lists(st.one_of(HUGE.filter(lambda n: abs(n) < 2**63), st.integers(0, 300)), max_size=3))
        if not entry.chunks:
            continue
        chunk = entry.chunks[0]
        stored = next(info for index, info in metadata.storage_data.items() if index.fqn == key)
        action = data.draw(st.sampled_from(["size", "chunk", "both", "offsets", "dtype", "length", "file", "layout"]))
        if action in ("size", "both"):
            entry.size = torch.Size(claim)
        if action in ("chunk", "both"):
            object.__setattr__(chunk, "sizes", torch.Size(claim))
        elif action == "offsets":
            object.__setattr__(chunk, "offsets", torch.Size(claim))
        elif action == "dtype":
            entry.properties.dtype = data.draw(
                st.sampled_from([torch.float64, torch.int8, torch.bool, torch.complex64])
            )
        elif action == "length":
            stored.offset, stored.length = data.draw(HUGE), data.draw(HUGE)
        elif action == "file":
            stored.relative_path = data.draw(st.sampled_from(["../x", "/dev/zero", "", ".", "none", "\0", 3]))
        elif action == "layout":
            entry.chunks = []
    with damaged(whole, kind, name, pickle.dumps(metadata)) as directory:
        must_answer(directory)


def test_sizes_that_metadata_and_configuration_agree_on_are_held_against_the_files(whole: Path) -> None:
    name, content = pickled_metadata(whole, "training")
    metadata = pickle.loads(content)
    for key in ("model/model.word_embeddings.weight", "model/lm_head.weight"):
        entry = metadata.state_dict_metadata[key]
        entry.size = torch.Size([2**29, 64])
        object.__setattr__(entry.chunks[0], "sizes", entry.size)
    facts = json.loads((whole / "training" / FACTS_NAME).read_text(encoding="utf-8"))
    facts["model"]["vocab_size"] = 2**29
    with damaged(whole, "training", name, pickle.dumps(metadata)) as directory:
        (directory / FACTS_NAME).unlink()
        (directory / FACTS_NAME).write_bytes(to_json(facts))
        source = open_pieces(directory)
        with pytest.raises(CheckpointError, match="word_embeddings"):
            source.read(published_pieces(source.config)[0])


@FUZZ
@given(data=st.data())
def test_tensor_files_may_be_spoilt(whole: Path, data) -> None:
    (name,) = (path.name for path in (whole / "training").glob("*.distcp"))
    content = (whole / "training" / name).read_bytes()
    with damaged(whole, "training", name, spoilt(content, data.draw)) as directory:
        must_answer(directory)


BOMBS = {
    "memo": b"\x80\x04Nr\xff\xff\xff\x3f.",  # LONG_BINPUT: an index of a thousand million
    "bytearray": b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # BYTEARRAY8 of 64 GiB
    "bytes": b"\x80\x04\x8e\x00\x00\x00\x00\x10\x00\x00\x00.",
    "text": b"\x80\x04\x8d\x00\x00\x00\x00\x10\x00\x00\x00.",
    "frame": b"\x80\x04\x95\x00\x00\x00\x00\x10\x00\x00\x00.",
    "integer": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "deep": b"\x80\x04" + b"(" * 100_000,
    "nested": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "empty": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("kind", ["training", "megatron"])
def test_pickles_that_want_memory_get_none(whole: Path, bomb: str, kind: str) -> None:
    name, _ = pickled_metadata(whole, kind)
    with damaged(whole, kind, name, BOMBS[bomb]) as directory:
        must_answer(directory)
    with damaged(whole, "megatron", f"{FIRST_ITERATION}/{COMMON_NAME}", zipped(BOMBS[bomb])) as directory:
        must_answer(directory)


@FUZZ
@given(data=st.data(), protocol=st.integers(0, 5))
def test_calls_that_pickles_ask_for_are_not_made(whole: Path, data, protocol: int) -> None:
    attack = Execute(whole.parent / CANARY)
    form = data.draw(st.sampled_from([attack, {"args": attack}, [attack], (attack,), {"a": [attack]}]))
    harm = pickle.dumps(form, protocol)
    name, content = pickled_metadata(whole, "training")
    at = data.draw(st.integers(0, len(content)))
    for spoilt in (harm, harm + content, content[:-1] + harm, content[:at] + harm + content[at:]):
        with damaged(whole, "training", name, spoilt) as directory:
            must_answer(directory)
        with damaged(whole, "megatron", f"{FIRST_ITERATION}/{COMMON_NAME}", zipped(spoilt)) as directory:
            must_answer(directory)


# ---- Megatron's arguments ----


def zipped(content: bytes, name: str = "archive/data.pkl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@FUZZ
@given(data=st.data())
def test_arguments_may_say_anything(whole: Path, data) -> None:
    name = f"{FIRST_ITERATION}/{COMMON_NAME}"
    common = torch.load(whole / "megatron" / name, weights_only=False)
    for key in data.draw(st.lists(st.sampled_from(sorted(vars(common["args"]))), min_size=1, max_size=3)):
        value = data.draw(st.one_of(NASTY, st.just(float("nan")), st.just(object), st.just(10**400), st.just(b"x")))
        setattr(common["args"], key, value)
    buffer = io.BytesIO()
    torch.save(common, buffer)
    with damaged(whole, "megatron", name, buffer.getvalue()) as directory:
        must_answer(directory)


@FUZZ
@given(data=st.data())
def test_the_archive_of_arguments_may_be_spoilt(whole: Path, data) -> None:
    name = f"{FIRST_ITERATION}/{COMMON_NAME}"
    with damaged(whole, "megatron", name, spoilt((whole / "megatron" / name).read_bytes(), data.draw)) as directory:
        must_answer(directory)


def test_a_zip_that_unfolds_without_end_is_not_unfolded(whole: Path) -> None:
    content = zipped(bytes(2**28))
    assert len(content) < 2**20
    with (
        damaged(whole, "megatron", f"{FIRST_ITERATION}/{COMMON_NAME}", content) as directory,
        pytest.raises(CheckpointError, match="pickle of more than 64 MiB"),
    ):
        open_pieces(directory)


@pytest.mark.parametrize("text", ["", "-1", "9" * 5000, "²", "1\n2", "release", "\0", "../../x"])
def test_the_latest_iteration_may_say_anything(whole: Path, text: str) -> None:
    with damaged(whole, "megatron", "latest_checkpointed_iteration.txt", text.encode()) as directory:
        must_answer(directory)
