"""A checkpoint directory as a set of named tensors, checked before anything is believed.

Truncated files, files that contradict the index, and indexes that name what is not there are errors that say
which file and which tensor. Nothing is executed: safetensors holds plain data, and `auto_map` is not followed.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ling.config.fields import shown
from ling.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
_LONG_NAME = 160
_LARGEST_JSON = 2**28
"""An index of Ling-1T has 6 MB."""
_REMAP_BYTES = 2**26
"""Read pages stay mapped while a file is open; it is reopened after this many, so that peak memory stays low."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies and what its header says."""

    file: Path
    dtype: str
    """safetensors' name: BF16, F32, F8_E4M3, ..."""
    shape: tuple[int, ...]
    nbytes: int


class TensorSource:
    """The tensors of a safetensors checkpoint: one file, or shards with an index."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tensors: dict[str, StoredTensor] = {}
        self._open: tuple[Path, Any] | None = None
        self._mapped = 0
        weight_map = _read_index(directory)
        files = sorted(set(weight_map.values())) if weight_map is not None else [_single_file(directory)]
        for name in files:
            self._add_file(directory / name, weight_map)
        if weight_map is not None and (lost := sorted(set(weight_map) - set(self.tensors))):
            raise CheckpointError(
                f"{directory / INDEX_NAME} places {quoted(lost[0])} in {weight_map[lost[0]]}, which does not hold it"
                + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else "")
            )

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor once, file by file; a tensor may be dropped as soon as the next is asked for."""
        by_file: dict[Path, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.tensors[key].file, []).append(key)
        for file, wanted in by_file.items():
            for run in self._runs(wanted):
                with _open(file) as opened:
                    for key in run:
                        yield key, opened.get_tensor(key)

    def get(self, key: str) -> Tensor:
        """Return one tensor. Calls in the order of the files are as fast as `read`."""
        stored = self.tensors[key]
        if self._open is None or self._open[0] != stored.file or self._mapped > _REMAP_BYTES:
            self._open, self._mapped = (stored.file, _open(stored.file)), 0
        self._mapped += stored.nbytes
        tensor: Tensor = self._open[1].get_tensor(key)
        return tensor

    def _runs(self, keys: list[str]) -> Iterator[list[str]]:
        run: list[str] = []
        size = 0
        for key in keys:
            if run and size + self.tensors[key].nbytes > _REMAP_BYTES:
                yield run
                run, size = [], 0
            run.append(key)
            size += self.tensors[key].nbytes
        if run:
            yield run

    def _add_file(self, file: Path, weight_map: dict[str, str] | None) -> None:
        with _open(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                if key in self.tensors:
                    raise CheckpointError(f"{quoted(key)} is in both {self.tensors[key].file.name} and {file.name}")
                if weight_map is not None and weight_map.get(key) != file.name:
                    raise CheckpointError(
                        f"{file.name} holds {quoted(key)}, but {INDEX_NAME} "
                        + (f"places it in {weight_map[key]}" if key in weight_map else "does not list it")
                    )
                part = opened.get_slice(key)
                shape = tuple(part.get_shape())
                self.tensors[key] = StoredTensor(file, part.get_dtype(), shape, _nbytes(part.get_dtype(), shape))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError with the file's name otherwise."""
    try:
        if (size := path.stat().st_size) > _LARGEST_JSON:
            raise CheckpointError(f"{path} has {size:,} bytes, which is no checkpoint's JSON; copy it again")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply to be a checkpoint's JSON") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def quoted(key: str) -> str:
    """Return a tensor's name for a message: as it is, unless it would break the line or fill the screen."""
    return key if key.isprintable() and len(key) <= _LONG_NAME else shown(key)


def _open(file: Path) -> Any:
    if not os.path.isfile(file):  # a pipe would wait for ever; unlike Path's, no name makes it raise
        raise CheckpointError(f"{file.parent / quoted(file.name)} is missing")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{file} is not a whole safetensors file ({reason}); copy it again") from None


def _read_index(directory: Path) -> dict[str, str] | None:
    path = directory / INDEX_NAME
    if not path.exists():
        return None
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map")
    for key, name in weight_map.items():
        if not isinstance(name, str) or not name.isprintable() or Path(name).name != name or not name:
            told = f"{path} places {quoted(key)} in {shown(name)}"
            raise CheckpointError(f"{told}, which is not a file name in this directory")
    return weight_map


def _single_file(directory: Path) -> str:
    found = sorted(p.name for p in directory.glob("*.safetensors")) if directory.is_dir() else []
    if "model.safetensors" in found:
        return "model.safetensors"
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{directory} holds no .safetensors file and no {INDEX_NAME}")
    raise CheckpointError(f"{directory} holds {len(found)} .safetensors files but no {INDEX_NAME}")


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    bits = int("".join(c for c in dtype.split("_")[0] if c.isdigit()) or 8)
    size = bits // 8
    for n in shape:
        size *= n
    return size
