"""Headers of safetensors files, read without the library so that damage can be described, and without the data.

Eight bytes of header length, a JSON header, the tensors' bytes. Nothing is allocated by what a header claims: its
length is held against the file's size first, and offsets are only compared.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ling.errors import CheckpointError

_LARGEST_HEADER = 100_000_000
"""As the safetensors library allows."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the end of the header."""
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class FileHeader:
    """A file's header, checked against its size."""

    path: Path
    data_start: int
    """First byte of the data in the file."""
    metadata: dict[str, Any]
    tensors: dict[str, TensorHeader]


def read_header(path: Path) -> FileHeader:
    """Read one file's header; CheckpointError that says what is wrong with the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise CheckpointError(f"is no safetensors file: {size} bytes cannot hold a header of {length}")
            content = file.read(length)
    except OSError as problem:
        raise CheckpointError(f"cannot be read: {problem.strerror}") from None
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"has a damaged header ({' '.join(str(problem).split())[:100]})") from None
    if not isinstance(parsed, dict):
        raise CheckpointError("has a damaged header (not an object)")
    metadata = parsed.pop("__metadata__", None)
    tensors = {key: _tensor(key, told) for key, told in parsed.items()}
    _check_extents(tensors, size - 8 - length)
    return FileHeader(path, 8 + length, metadata if isinstance(metadata, dict) else {}, tensors)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in found if names.count(key) > 1)} stands in it twice")
    return found


def _tensor(key: str, told: Any) -> TensorHeader:
    problem = f"has a damaged header: what it says of {key[:80]} is no dtype, shape and offsets"
    if not isinstance(told, dict):
        raise CheckpointError(problem)
    dtype, shape, offsets = told.get("dtype"), told.get("shape"), told.get("data_offsets")
    if not (isinstance(dtype, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise CheckpointError(problem)
    if dtype not in BITS:
        raise CheckpointError(f"has tensor {key[:80]} in an unknown dtype {dtype[:20]}")
    bits = BITS[dtype]
    for n in shape:
        bits *= n
        if bits > 2**66:
            break
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(f"has tensor {key[:80]} whose {offsets[1] - offsets[0]} bytes are not its {dtype} shape")
    return TensorHeader(dtype, tuple(shape), *offsets)


def _counts(numbers: Any) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _check_extents(tensors: dict[str, TensorHeader], size: int) -> None:
    """Tensors fill the data without gap or overlap, and the file ends where they do."""
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end:
            raise CheckpointError(
                f"has a {'gap' if tensor.start > end else 'doubly used byte'} before tensor {key[:80]}"
            )
        end = tensor.end
    if size < end:
        raise CheckpointError(f"is truncated: {size:,} of {end:,} bytes of tensors are there")
    if size > end:
        raise CheckpointError(f"has {size - end:,} bytes behind its last tensor")
