"""From any checkpoint to any other, one tensor at a time."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ling.checkpoint.atomic import atomic_directory
from ling.checkpoint.dcp import FACTS_NAME
from ling.checkpoint.dcp_writer import write_pieces
from ling.checkpoint.layout import Layout, megatron_layout, training_layout
from ling.checkpoint.megatron import COMMON_NAME, FIRST_ITERATION, LATEST_NAME, write_common
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.pieces import (
    TOKENIZER_DIRECTORY,
    PieceSource,
    SafetensorsPieces,
    files_of_tokenizer,
    open_pieces,
)
from ling.checkpoint.save import ExportFormat, config_json, encode, write_checkpoint, write_pieces_as_safetensors
from ling.checkpoint.shards import Shards, take_over_shards
from ling.checkpoint.source import TensorSource
from ling.checkpoint.writer import DEFAULT_SHARD_BYTES
from ling.config import write_published
from ling.errors import CheckpointError

MTP_FILE = "mtp_layers_parameters.safetensors"
"""The published name of MTP layers on their own."""

_MARKS = {"config.json", ".metadata", COMMON_NAME, LATEST_NAME}

Progress = Callable[[int, int], None]
"""Called with (tensors done, tensors in all)."""


def to_safetensors(
    source: PieceSource,
    target: Path,
    export: ExportFormat,
    *,
    tokenizer: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write `source` as a Hugging Face directory.

    tokenizer  directory whose files replace those that come with the source
    workers    files written at the same time, each with the source opened for itself
    finish     is called last with the directory before it appears under its name, to add or replace small files
    Interrupted with Ctrl-C, the same call goes on from the files that are whole.
    """
    files = _files(source, tokenizer)
    _check_target(source, target)
    write_checkpoint(
        target, source.config, _reader_per_thread(source), export, max_shard_bytes=max_shard_bytes, overwrite=overwrite,
        finish=lambda directory: _finish(files, directory, finish),
        progress=_counter(published_pieces(source.config), progress), workers=workers,
        resume=_fingerprint(source, export, max_shard_bytes),
    )  # fmt: skip


def take_over_safetensors(
    source: PieceSource,
    target: Path,
    finish: Callable[[Path], None],
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Shards:
    """Put the files of a safetensors `source` into `target` with no value changed; linked where that can be.

    finish  as in `to_safetensors`; config.json is its to write
    Tensors that `source.config` has no place for are left out.
    """
    files = _files(source, tokenizer)
    _check_target(source, target)
    wanted = {key for piece in published_pieces(source.config) for key in (piece.key, piece.scale_key)}
    with atomic_directory(target, overwrite=overwrite) as partial:
        shards = take_over_shards(TensorSource(source.directory), partial, wanted, progress)
        _finish(files, partial, finish)
    return shards


def mtp_to_safetensors(
    source: PieceSource,
    target: Path,
    export: ExportFormat,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the MTP layers alone, as the layers from 0 of a directory without embedding and head."""
    config = source.config
    if not config.num_nextn_predict_layers:
        raise CheckpointError(f"{source.directory} has no MTP layer to write")
    _check_target(source, target)
    alone = replace(
        config, num_hidden_layers=config.num_nextn_predict_layers, first_k_dense_replace=0, num_nextn_predict_layers=1
    )
    pieces = [piece for piece in published_pieces(config) if piece.layer >= config.num_hidden_layers]
    write_pieces_as_safetensors(
        target, pieces, source.read, export, config_json(alone, export), overwrite=overwrite,
        rename=lambda piece: piece.key.replace(
            f"model.layers.{piece.layer}.", f"model.layers.{piece.layer - config.num_hidden_layers}.", 1
        ),
        file_name=MTP_FILE, progress=_counter(pieces, progress),
    )  # fmt: skip


def verify(source: PieceSource, target: Path, export: ExportFormat | None, progress: Progress | None = None) -> int:
    """Compare every tensor of `target` with what `source` gives, bit for bit; return how many.

    export  the format of a safetensors target; None: the values in the dtype that the target has
    """
    pieces, written = published_pieces(source.config), open_pieces(target)
    advance = _counter(pieces, progress)
    for piece in pieces:
        values = source.read(piece)
        if export is not None and isinstance(written, SafetensorsPieces):
            expected, found = encode(piece, values, export), written.stored(piece)
        else:
            found = (written.read(piece),)
            expected = (values.to(found[0].dtype),)
        if not all(_same_bits(x, y) for x, y in zip(expected, found, strict=True)):
            raise CheckpointError(f"{piece.key} in {target} is not what {source.directory} holds; convert it again")
        advance(piece)
    return len(pieces)


def _same_bits(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def to_training(
    source: PieceSource,
    target: Path,
    dtype: torch.dtype | None = None,
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write `source` as a training checkpoint at step 0, without optimizer state.

    dtype  None: as stored. Expert biases stay float32
    """
    files, config = _files(source, tokenizer), source.config
    _check_target(source, target)
    facts = {"step": 0, "snapshots": 0, "seconds": 0.0, "model": write_published(config)}
    with atomic_directory(target, overwrite=overwrite) as partial:
        _write_distributed(source, partial, training_layout(config), dtype, progress)
        (partial / FACTS_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        _copy(files, partial / TOKENIZER_DIRECTORY)


def to_megatron(
    source: PieceSource,
    target: Path,
    dtype: torch.dtype | None = torch.bfloat16,
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write `source` as iteration 1 of a Megatron `torch_dist` checkpoint, ready for `--load`.

    dtype  None: as stored. Expert biases stay float32
    """
    files, config = _files(source, tokenizer), source.config
    if config.tie_word_embeddings:
        raise CheckpointError(f"{source.directory} shares embedding and head, which Megatron's recipes do not")
    _check_target(source, target)
    with atomic_directory(target, overwrite=overwrite) as partial:
        iteration = partial / FIRST_ITERATION
        iteration.mkdir()
        _write_distributed(source, iteration, megatron_layout(config), dtype, progress)
        write_common(iteration, config)
        (partial / LATEST_NAME).write_text("1", encoding="utf-8")
        _copy(files, partial / TOKENIZER_DIRECTORY)


def without_mtp(source: PieceSource) -> PieceSource:
    """Return `source` as a model without its MTP layers."""
    source.config = source.config.without_mtp()
    return source


def _reader_per_thread(source: PieceSource) -> Callable[[Piece], Tensor]:
    own = threading.local()

    def read(piece: Piece) -> Tensor:
        if not hasattr(own, "source"):
            own.source = source.reopen()
        values: Tensor = own.source.read(piece)
        return values

    return read


def _fingerprint(source: PieceSource, export: ExportFormat, max_shard_bytes: int) -> str:
    """Return a short name of what is read, as it is now, and how it is written."""
    found = sorted(f for f in source.directory.iterdir() if f.is_file())
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in found]
    told = [str(source.directory.resolve()), files, asdict(export), max_shard_bytes, write_published(source.config)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _check_target(source: PieceSource, target: Path) -> None:
    """Refuse a target whose replacement would lose the source, or something that is not a checkpoint."""
    read, written = source.directory.resolve(), target.resolve()
    if read == written or written in read.parents or read in written.parents:
        raise CheckpointError(f"{target} and the source {source.directory} must lie apart; choose another target")
    held = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if held and not held & _MARKS:
        raise CheckpointError(f"{target} exists and is not a checkpoint; choose another target")


def _write_distributed(
    source: PieceSource, directory: Path, layout: Layout, dtype: torch.dtype | None, progress: Progress | None
) -> None:
    def dtype_of(piece: Piece) -> torch.dtype:
        return torch.float32 if piece.float32 else dtype or source.dtype(piece)

    write_pieces(source, directory, layout, dtype_of, _counter(published_pieces(source.config), progress))


def _counter(pieces: list[Piece], progress: Progress | None) -> Callable[[Piece], None]:
    total, done = len(pieces), 0

    def advance(_: Piece) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return advance


def _files(source: PieceSource, tokenizer: Path | None) -> list[Path]:
    return source.tokenizer_files() if tokenizer is None else files_of_tokenizer(tokenizer)


def _finish(files: list[Path], directory: Path, finish: Callable[[Path], None] | None) -> None:
    _copy(files, directory)
    if finish is not None:
        finish(directory)


def _copy(files: list[Path], directory: Path) -> None:
    """Copy `files` into `directory`, which is made if there are any."""
    for file in files:
        directory.mkdir(exist_ok=True)
        shutil.copy(file, directory / file.name)
