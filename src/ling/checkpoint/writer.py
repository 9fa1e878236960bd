"""Write safetensors shards as a stream: sizes are known before the first tensor is.

The format is eight bytes of header length, a JSON header, and the tensors' bytes. The safetensors library writes a
file only from tensors that are all in memory; this writes them one by one, and the library reads them back in tests.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ling.checkpoint.source import INDEX_NAME

DEFAULT_SHARD_BYTES = 5 * 10**9

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}


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


def write_shards(directory: Path, specs: Sequence[TensorSpec], tensors: Iterator[Tensor], max_shard_bytes: int) -> None:
    """Write `tensors`, which come in the order of `specs`, as numbered shards and an index into `directory`."""
    shards = _cut(specs, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / name, shard, tensors)
        weight_map |= {spec.key: name for spec in shard}
    assert next(tensors, None) is None, "more tensors than were announced"
    index = {"metadata": {"total_size": sum(s.nbytes for s in specs)}, "weight_map": weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _cut(specs: Sequence[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def _write_file(path: Path, specs: Sequence[TensorSpec], tensors: Iterator[Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec.nbytes
        header[spec.key] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for spec in specs:
            tensor = next(tensors)
            assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), (spec, tensor.shape)
            file.write(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
