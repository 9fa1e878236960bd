"""What a distributed checkpoint's metadata claims, held against its types, its files and itself.

`.metadata` is a pickle: the restricted reader yields the right classes, with whatever values a stranger put into them.
"""

import math
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ling.errors import CheckpointError


def check_records(metadata: Metadata, path: Path) -> None:
    """Raise CheckpointError unless every record holds values of its types and every file lies beside `path`."""
    entries, places = _field(metadata, "state_dict_metadata"), _field(metadata, "storage_data")
    sound = (
        isinstance(entries, dict)
        and all(isinstance(name, str) and _is_entry(entry) for name, entry in entries.items())
        and isinstance(places, dict)
        and all(_is_index(index) and _is_place(place) for index, place in places.items())
        and isinstance(_field(metadata, "storage_meta"), StorageMeta | None)
    )
    if not sound:
        raise CheckpointError(f"{path} is damaged (a record holds values of another type); copy the checkpoint again")
    assert isinstance(places, dict)
    for place in places.values():
        name = place.relative_path
        if Path(name).name != name or not name.isprintable():
            raise CheckpointError(f"{path} points outside its directory, to {name[:80]!r}")


def stored_bytes(metadata: Metadata, directory: Path) -> dict[str, int]:
    """Return how many bytes the files hold of each tensor; those that a file is too short for do not count."""
    sizes: dict[str, int] = {}
    held: dict[str, int] = {}
    for index, place in (metadata.storage_data or {}).items():
        name = place.relative_path
        if name not in sizes:
            file = directory / name
            sizes[name] = file.stat().st_size if file.is_file() else 0
        if place.offset >= 0 and place.length >= 0 and place.offset + place.length <= sizes[name]:
            held[index.fqn] = held.get(index.fqn, 0) + place.length
    return held


def check_extent(name: str, entry: TensorStorageMetadata, held: int, directory: Path) -> None:
    """Raise CheckpointError unless the files hold the whole tensor, in chunks that tile it.

    held  bytes that the files hold of it
    """
    nbytes = math.prod(entry.size) * entry.properties.dtype.itemsize
    if nbytes > held:
        raise CheckpointError(
            f"{directory}: a .distcp file is missing or damaged ({held:,} of the {nbytes:,} bytes of tensor {name}, "
            f"{tuple(entry.size)}, are there); copy the checkpoint again"
        )
    inside = all(_lies_inside(chunk, entry.size) for chunk in entry.chunks)
    volumes = [math.prod(chunk.sizes) for chunk in entry.chunks]
    starts = {tuple(chunk.offsets) for chunk, volume in zip(entry.chunks, volumes, strict=True) if volume}
    if not inside or sum(volumes) != math.prod(entry.size) or len(starts) != sum(map(bool, volumes)):
        raise CheckpointError(
            f"{directory}: the chunks of tensor {name} do not make up its shape {tuple(entry.size)}; "
            "copy the checkpoint again"
        )


def _lies_inside(chunk: ChunkStorageMetadata, size: torch.Size) -> bool:
    return len(chunk.offsets) == len(chunk.sizes) == len(size) and all(
        start >= 0 and length >= 0 and start + length <= n for start, length, n in zip(chunk.offsets, chunk.sizes, size)
    )


def _is_entry(entry: object) -> bool:
    if isinstance(entry, BytesStorageMetadata):
        return True
    return (
        isinstance(entry, TensorStorageMetadata)
        and isinstance(properties := _field(entry, "properties"), TensorProperties)
        and isinstance(_field(properties, "dtype"), torch.dtype)
        and _is_size(_field(entry, "size"))
        and isinstance(chunks := _field(entry, "chunks"), list)
        and all(
            isinstance(chunk, ChunkStorageMetadata)
            and _is_size(_field(chunk, "offsets"))
            and _is_size(_field(chunk, "sizes"))
            for chunk in chunks
        )
    )


def _is_index(index: object) -> bool:
    return isinstance(index, MetadataIndex) and isinstance(_field(index, "fqn"), str)


def _is_place(place: object) -> bool:
    return (
        isinstance(place, _StorageInfo)
        and isinstance(_field(place, "relative_path"), str)
        and all(type(_field(place, name)) is int for name in ("offset", "length"))
    )


def _is_size(value: object) -> bool:
    return isinstance(value, torch.Size) and all(n >= 0 for n in value)


def _field(record: object, name: str) -> object:
    """Return a field, or None where a pickle left it out."""
    return getattr(record, name, None)
