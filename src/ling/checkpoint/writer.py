"""Write safetensors shards as a stream: sizes are known before the first tensor is.

The format is eight bytes of header length, a JSON header, and the tensors' bytes. The safetensors library writes a
file only from tensors that are all in memory; this writes them one by one, and the library reads them back in tests.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ling.checkpoint.source import INDEX_NAME

DEFAULT_SHARD_BYTES = 5 * 10**9

_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that is going to be written."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True, slots=True)
class Entry:
    """Tensors that are made together, such as codes and their scales, and lie in one file."""

    specs: tuple[TensorSpec, ...]
    make: Callable[[], Iterable[Tensor]]
    """Gives the tensors in the order of `specs`, each whole or in parts that follow each other."""

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)


def safetensors_name(dtype: torch.dtype) -> str:
    """Return what the format calls a dtype that is written."""
    return _NAMES[dtype]


def write_shards(
    directory: Path,
    entries: Sequence[Entry],
    max_shard_bytes: int,
    *,
    workers: int = 1,
    name: str | None = None,
    alignment: int = 8,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write `entries` as numbered shards and an index into `directory`; a shard that is there already is kept.

    Any other file is removed: an interrupted call left it.
    workers  shards written at the same time, each by a thread
    name     one file of this name instead, whatever its size
    alignment  bytes of which the first tensor of a file begins at a multiple; the others follow it without gaps
    advance  is called with the number of entries that are newly there, those of kept shards first
    """
    shards = _cut(entries, max_shard_bytes) if name is None else [list(entries)]
    numbered = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = numbered if name is None else [name]
    _clear(directory, names)
    missing = [(directory / name, shard) for name, shard in zip(names, shards) if not (directory / name).exists()]
    if kept := len(entries) - sum(len(shard) for _, shard in missing):
        advance(kept)
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_write_file, path, shard, alignment, stop, advance) for path, shard in missing]
        try:
            for future in futures:
                future.result()
        finally:  # after a failure or Ctrl-C: the other files end at their next tensor
            stop.set()
            pool.shutdown(cancel_futures=True)
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
        "weight_map": {spec.key: name for name, shard in zip(names, shards) for entry in shard for spec in entry.specs},
    }
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _clear(directory: Path, kept: Sequence[str]) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()


def _cut(entries: Sequence[Entry], max_shard_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


@torch.no_grad()  # of this thread
def _write_file(
    path: Path, entries: Sequence[Entry], alignment: int, stop: threading.Event, advance: Callable[[int], None]
) -> None:
    """Write one shard under another name first: what has its name is whole."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in (spec for entry in entries for spec in entry.specs):
        end = offset + spec.nbytes
        header[spec.key] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % alignment)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for entry in entries:
            if stop.is_set():
                return
            for tensor in _in_order(entry):
                file.write(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
            advance(1)
        file.flush()
        os.fsync(file.fileno())  # a machine that dies must not leave the name without the bytes
    unfinished.rename(path)


def _in_order(entry: Entry) -> Iterator[Tensor]:
    """Yield what an entry makes, having seen that it is what `specs` promise."""
    made = iter(entry.make())
    for spec in entry.specs:
        left = spec.nbytes
        while True:
            tensor = next(made)
            left -= tensor.nbytes
            whole = tuple(tensor.shape) == spec.shape
            part = tensor.shape[-1:] == spec.shape[-1:] and tensor.nbytes > 0
            assert tensor.dtype == spec.dtype, (spec, tensor.dtype)
            assert left >= 0, (spec, left)
            assert whole or part, (spec, tensor.shape)
            yield tensor
            if left == 0:
                break
    assert next(made, None) is None, entry.specs
