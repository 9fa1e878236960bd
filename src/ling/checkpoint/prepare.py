"""Writing prepared checkpoints, as a stream: one published tensor and the scales of one parameter are in memory."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ling.checkpoint.atomic import atomic_directory
from ling.checkpoint.beside import write_beside
from ling.checkpoint.convert import Progress, check_target, files_beside, fingerprint
from ling.checkpoint.finite import check_finite
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.packing import Weights, exact_dtype, fit_routers, formats_told, packed_format
from ling.checkpoint.pieces import PieceSource
from ling.checkpoint.prepared import ALIGNMENT, METHOD, packed_config, packed_model
from ling.checkpoint.source import TensorSource
from ling.checkpoint.writer import DEFAULT_SHARD_BYTES, Entry, TensorSpec, write_shards
from ling.config import ModelConfig
from ling.errors import CheckpointError, ConfigError
from ling.model.packed import SCALES_SUFFIX
from ling.ops.packed import PackedFormat, quantize


def to_packed(
    source: PieceSource,
    target: Path,
    weights: Weights,
    *,
    tokenizer: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `source` with packed weights, one published tensor and the scales of one parameter in memory.

    tokenizer  directory whose files replace those that come with the source
    workers    files written at the same time, each with the source opened for itself
    Interrupted with Ctrl-C, the same call goes on from the files that are whole.
    """
    files, config = files_beside(source, tokenizer), source.config
    check_target(source, target, overwrite=overwrite)
    read = read_in_threads(source)
    layout = [(spec.key, str(spec.dtype)) for entry in packed_entries(config, weights, read) for spec in entry.specs]
    # Files of another layout, from an earlier version of ling, hold other tensors: they are none to go on from.
    resume = fingerprint(source, packed_config(config, weights), layout, max_shard_bytes)
    matrices = f"{formats_told(weights)} ({METHOD})"
    storage = [
        f"Matrices stored as {matrices}, the embedding as published, routers as bfloat16 "
        "where that loses nothing, the rest as float32."
    ]
    with atomic_directory(target, overwrite=overwrite, resume=resume) as partial:
        write_packed(
            partial, config, weights, read, max_shard_bytes=max_shard_bytes, workers=workers, progress=progress,
        )  # fmt: skip
        write_beside(partial, source, files, storage, name=target.name)


def write_packed(
    directory: Path,
    config: ModelConfig,
    weights: Weights,
    read: Callable[[Piece], Tensor],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write the tensors that `read` gives, and config.json, into an existing directory."""
    entries = packed_entries(config, weights, read)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(entries))

    write_shards(directory, entries, max_shard_bytes, workers=workers, alignment=ALIGNMENT, advance=advance)
    text = json.dumps(packed_config(config, weights), indent=2, ensure_ascii=False)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")


def packed_entries(config: ModelConfig, weights: Weights, read: Callable[[Piece], Tensor]) -> list[Entry]:
    """Return what a prepared checkpoint holds, parameter by parameter, made of the values that `read` gives."""
    model = packed_model(config, weights)
    parts: dict[str, list[Piece]] = {}
    for piece in published_pieces(config):
        parts.setdefault(piece.parameter, []).append(piece)
    fit_routers(model, lambda name: exact_dtype(read(parts[name][0])))
    state = model.state_dict()
    entries = []
    for name, pieces in parts.items():
        format = packed_format(model, pieces[0])
        keys = (name,) if format is None else (name, name + SCALES_SUFFIX)
        specs = tuple(TensorSpec(key, state[key].dtype, tuple(state[key].shape)) for key in keys)
        entries.append(Entry(specs, _maker(pieces, format, specs[0].dtype, read)))
    assert {spec.key for entry in entries for spec in entry.specs} == set(state), set(state)
    return entries


def verify_packed(source: PieceSource, target: Path, weights: Weights, progress: Progress | None = None) -> int:
    """Compare every tensor of `target` with what `source` gives, bit for bit; return how many."""
    written = TensorSource(target)
    entries = packed_entries(source.config, weights, source.read)
    for done, entry in enumerate(entries, start=1):
        made = iter(entry.make())
        for spec in entry.specs:
            found, at = _bytes(written.get(spec.key)), 0
            while at < len(found):
                part = _bytes(next(made))
                if not torch.equal(part, found[at : at + len(part)]):
                    told = f"{spec.key} in {target} is not what {source.directory} gives"
                    raise CheckpointError(f"{told}; convert it again")
                at += len(part)
        if progress is not None:
            progress(done, len(entries))
    return sum(len(entry.specs) for entry in entries)


def read_in_threads(source: PieceSource) -> Callable[[Piece], Tensor]:
    """Return a `read` that opens the source again in each thread."""
    own = threading.local()

    def read(piece: Piece) -> Tensor:
        if not hasattr(own, "source"):
            own.source = source.reopen()
        values: Tensor = own.source.read(piece)
        return values

    return read


def _maker(
    pieces: list[Piece], format: PackedFormat | None, dtype: torch.dtype, read: Callable[[Piece], Tensor]
) -> Callable[[], Iterator[Tensor]]:
    def make() -> Iterator[Tensor]:
        scales = []
        for piece in pieces:
            values = read(piece)
            check_finite(values, f"tensor {piece.key}")
            if format is None:
                yield values.to(dtype)
                continue
            try:
                weight = quantize(values, format)
            except ConfigError as error:
                raise CheckpointError(f"tensor {piece.key}: {error}") from None
            scales.append(weight.scales)
            yield weight.codes
        yield from scales

    return make


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
