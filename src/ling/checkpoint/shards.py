"""Safetensors files taken over as they are: linked, copied, or cut. No value is decoded or changed."""

import json
import os
import shutil
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from ling.checkpoint.names import Piece
from ling.checkpoint.save import Precision
from ling.checkpoint.source import INDEX_NAME, StoredTensor, TensorSource
from ling.errors import CheckpointError

_PRECISIONS: dict[str, Precision] = {"BF16": "bfloat16", "F32": "float32"}
_CHUNK_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """What became of a checkpoint's files."""

    linked: int = 0
    """The same file under a second name; it takes no room."""
    copied: int = 0
    cut: int = 0
    """Written again without some tensors."""
    left_out: int = 0
    """Tensors that no file has any more."""


def stored_precision(source: TensorSource, pieces: list[Piece]) -> Precision | None:
    """Return the precision in which `source` holds `pieces`; None if it is none that `ling convert` writes.

    Raises CheckpointError for a tensor of another shape than its piece.
    """
    for piece in pieces:
        if (stored := source.tensors[piece.key]).shape != piece.shape:
            raise CheckpointError(
                f"tensor {piece.key} is {stored.shape} in {stored.file.name}, the model of config.json has "
                f"{piece.shape}; mend config.json or convert the checkpoint again"
            )
    quantized = {piece.scale_key in source.tensors for piece in pieces if piece.quantized}
    plain = {source.tensors[p.key].dtype for p in pieces if not p.float32 and p.scale_key not in source.tensors}
    if quantized == {True} and plain <= set(_PRECISIONS):
        return "float8"
    if True in quantized or len(plain) != 1:
        return None
    return _PRECISIONS.get(plain.pop())


def take_over_shards(
    source: TensorSource, target: Path, wanted: Set[str], progress: Callable[[int, int], None] | None = None
) -> Shards:
    """Put the files of `source` with their `wanted` tensors into `target`, and an index of these.

    A file with nothing else in it is linked, or copied where links cannot be; one with nothing wanted is left out.
    """
    by_file: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for key, stored in source.tensors.items():
        by_file.setdefault(stored.file, []).append((key, stored))
    linked = copied = cut = done = 0
    for file, tensors in by_file.items():
        kept = {key for key, _ in tensors if key in wanted}
        if len(kept) == len(tensors):
            is_link = _link(file, target / file.name)
            linked, copied = linked + is_link, copied + (not is_link)
        elif kept:
            _cut(file, target / file.name, kept)
            cut += 1
        done += len(tensors)
        if progress is not None:
            progress(done, len(source.tensors))
    places = {key: stored for key, stored in source.tensors.items() if key in wanted}
    index = {
        "metadata": {"total_size": sum(stored.nbytes for stored in places.values())},
        "weight_map": {key: stored.file.name for key, stored in places.items()},
    }
    (target / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return Shards(linked=linked, copied=copied, cut=cut, left_out=len(source.tensors) - len(places))


def _link(file: Path, target: Path) -> bool:
    """Give `file` a second name; False if it had to be copied."""
    original = file.resolve()  # a cache of downloads holds links of its own, which lead nowhere from elsewhere
    try:
        os.link(original, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(original, target)
        return False
    return True


def _cut(file: Path, target: Path, kept: Set[str]) -> None:
    """Write `file` again with only its `kept` tensors, byte for byte."""
    with file.open("rb") as whole, target.open("wb") as part:
        length = int.from_bytes(whole.read(8), "little")
        old = json.loads(whole.read(length))
        ranges = sorted((old[key]["data_offsets"], key) for key in kept)
        header: dict[str, object] = {"__metadata__": old.get("__metadata__", {"format": "pt"})}
        offset = 0
        for (start, end), key in ranges:
            header[key] = {**old[key], "data_offsets": [offset, offset + end - start]}
            offset += end - start
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
        part.write(len(encoded).to_bytes(8, "little"))
        part.write(encoded)
        for (start, end), _ in ranges:
            whole.seek(8 + length + start)
            left = end - start
            while left:
                chunk = whole.read(min(left, _CHUNK_BYTES))
                assert chunk, f"{file} ended {left} bytes early"
                part.write(chunk)
                left -= len(chunk)
