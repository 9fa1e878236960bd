"""From any checkpoint to any other, one tensor at a time."""

import copy
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ling.checkpoint.atomic import atomic_directory, check_free
from ling.checkpoint.beside import copy_files, storage_of, write_beside, write_card
from ling.checkpoint.dcp import FACTS_NAME
from ling.checkpoint.dcp_writer import write_pieces
from ling.checkpoint.layout import Layout, megatron_layout, training_layout
from ling.checkpoint.megatron import COMMON_NAME, FIRST_ITERATION, LATEST_NAME, write_common
from ling.checkpoint.names import SCALE_SUFFIX, Piece, published_pieces
from ling.checkpoint.pieces import (
    TOKENIZER_DIRECTORY,
    PieceSource,
    SafetensorsPieces,
    files_of_tokenizer,
    open_pieces,
)
from ling.checkpoint.save import ExportFormat, config_json, encode, fill_with_pieces, write_checkpoint
from ling.checkpoint.shards import Shards, take_over_shards
from ling.checkpoint.source import TensorSource
from ling.checkpoint.writer import DEFAULT_SHARD_BYTES
from ling.config import ModelConfig, write_published
from ling.errors import CheckpointError

logger = logging.getLogger(__name__)

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
    files = files_beside(source, tokenizer)
    check_target(source, target, overwrite=overwrite)
    own = threading.local()

    def make(piece: Piece) -> tuple[Tensor, ...]:
        if not hasattr(own, "source"):  # of this thread
            own.source = source.reopen()
        return _stored_form(own.source, piece, export)

    write_checkpoint(
        target, source.config, make, export, max_shard_bytes=max_shard_bytes, overwrite=overwrite,
        finish=lambda directory: _finish(directory, source, files, export, target.name, finish),
        advance=_counter(published_pieces(source.config), progress), workers=workers,
        resume=fingerprint(source, asdict(export), max_shard_bytes),
    )  # fmt: skip


def take_over_safetensors(
    source: PieceSource,
    target: Path,
    export: ExportFormat,
    finish: Callable[[Path], None],
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Shards:
    """Put the files of a safetensors `source` into `target` with no value changed; linked where that can be.

    export  what the files hold already, for the model card
    finish  as in `to_safetensors`; config.json is its to write
    Tensors that `source.config` has no place for are left out.
    """
    files = files_beside(source, tokenizer)
    check_target(source, target, overwrite=overwrite)
    wanted = {key for piece in published_pieces(source.config) for key in (piece.key, piece.scale_key)}
    with atomic_directory(target, overwrite=overwrite) as partial:
        shards = take_over_shards(TensorSource(source.directory), partial, wanted, progress)
        _finish(partial, source, files, export, target.name, finish)
    return shards


@contextmanager
def mtp_to_safetensors(
    source: PieceSource,
    target: Path,
    export: ExportFormat,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Iterator[None]:
    """Write the MTP layers alone, as the layers from 0 of a directory without embedding and head.

    The directory appears under its name when the block ends well: it and what the block writes come together.
    """
    config = source.config
    check_target(source, target, overwrite=overwrite)
    alone = replace(
        config, num_hidden_layers=config.num_nextn_predict_layers, first_k_dense_replace=0, num_nextn_predict_layers=1
    )
    pieces = mtp_pieces(source)
    with atomic_directory(target, overwrite=overwrite) as partial:
        fill_with_pieces(
            partial, pieces, lambda piece: _stored_form(source, piece, export), export, config_json(alone, export),
            rename=lambda piece: _key_alone(piece, config), file_name=MTP_FILE, advance=_counter(pieces, progress),
        )  # fmt: skip
        yield


def verify_mtp(source: PieceSource, target: Path, export: ExportFormat) -> int:
    """Compare what `mtp_to_safetensors` wrote with what `source` gives, bit for bit; return how many tensors."""
    pieces, written = mtp_pieces(source), TensorSource(target)
    for piece in pieces:
        key = _key_alone(piece, source.config)
        expected = _stored_form(source, piece, export)
        found = tuple(written.get(name) for name in (key, key + SCALE_SUFFIX) if name in written.tensors)
        if len(expected) != len(found) or not all(map(_same_bits, expected, found)):
            raise CheckpointError(f"{key} in {target} is not what {source.directory} holds; convert it again")
    return len(pieces)


def mtp_pieces(source: PieceSource) -> list[Piece]:
    """List the tensors of the MTP layers; CheckpointError if there are none."""
    config = source.config
    if not config.num_nextn_predict_layers:
        raise CheckpointError(f"{source.directory} has no MTP layer to write")
    return [piece for piece in published_pieces(config) if piece.layer >= config.num_hidden_layers]


def _key_alone(piece: Piece, config: ModelConfig) -> str:
    own = f"model.layers.{piece.layer - config.num_hidden_layers}."
    return piece.key.replace(f"model.layers.{piece.layer}.", own, 1)


def verify(
    source: PieceSource,
    target: Path,
    export: ExportFormat | None,
    progress: Progress | None = None,
    *,
    workers: int = 1,
) -> int:
    """Compare every tensor of `target` with what `source` gives, bit for bit; return how many.

    export   the format of a safetensors target; None: the values in the dtype that the target has
    workers  threads, each of which compares a share of the tensors
    """
    pieces, written = published_pieces(source.config), open_pieces(target)
    advance, stop = _counter(pieces, progress), threading.Event()

    def compare(share: list[Piece]) -> None:
        ours, theirs = source.reopen(), written.reopen()
        for piece in share:
            if stop.is_set():
                return
            if export is not None and isinstance(theirs, SafetensorsPieces):
                expected, found = _stored_form(ours, piece, export), theirs.stored(piece)
            else:
                found = (theirs.read(piece),)
                expected = (ours.read(piece).to(found[0].dtype),)
            if not all(_same_bits(x, y) for x, y in zip(expected, found, strict=True)):
                raise CheckpointError(f"{piece.key} in {target} is not what {source.directory} holds; convert it again")
            advance(1)

    size = -(-len(pieces) // workers)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(compare, pieces[at : at + size]) for at in range(0, len(pieces), size)]
        try:
            for future in futures:
                future.result()
        finally:  # after a difference or Ctrl-C
            stop.set()
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
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `source` as a training checkpoint at step 0, without optimizer state.

    dtype  None: as stored. Expert biases stay float32
    """
    files, config = files_beside(source, tokenizer), source.config
    check_target(source, target, overwrite=overwrite)
    facts = {"step": 0, "snapshots": 0, "seconds": 0.0, "model": write_published(config)}
    with atomic_directory(target, overwrite=overwrite) as partial:
        _write_distributed(source, partial, training_layout(config), dtype, workers, progress)
        (partial / FACTS_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        copy_files(files, partial / TOKENIZER_DIRECTORY)
        write_card(partial, source, [_stored_as(dtype)], name=target.name)


def to_megatron(
    source: PieceSource,
    target: Path,
    dtype: torch.dtype | None = torch.bfloat16,
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `source` as iteration 1 of a Megatron `torch_dist` checkpoint, ready for `--load`.

    dtype  None: as stored. Expert biases stay float32
    """
    files, config = files_beside(source, tokenizer), source.config
    if config.rope_scaling is not None:
        logger.warning(
            "Megatron does not stretch the context with %s: it trains as if without; the way back has it again",
            config.rope_scaling.type,
        )
    check_target(source, target, overwrite=overwrite)
    with atomic_directory(target, overwrite=overwrite) as partial:
        iteration = partial / FIRST_ITERATION
        iteration.mkdir()
        _write_distributed(source, iteration, megatron_layout(config), dtype, workers, progress)
        write_common(iteration, config)
        write_card(iteration, source, [_stored_as(dtype)], name=target.name)
        (partial / LATEST_NAME).write_text("1", encoding="utf-8")
        copy_files(files, partial / TOKENIZER_DIRECTORY)


def check_target(source: PieceSource, target: Path, *, overwrite: bool = False) -> None:
    """Refuse a target that is taken, or whose replacement would lose the source or what is not a checkpoint."""
    written = target.resolve()
    for directory in source.directories:
        read = directory.resolve()
        if read == written or written in read.parents or read in written.parents:
            raise CheckpointError(f"{target} and the source {directory} must lie apart; choose another target")
    held = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if held and not held & _MARKS:
        raise CheckpointError(f"{target} exists and is not a checkpoint; choose another target")
    check_free(target, overwrite=overwrite)


def files_beside(source: PieceSource, tokenizer: Path | None) -> list[Path]:
    """Return the tokenizer's files that go along: those of `tokenizer`, or the source's own."""
    return source.tokenizer_files() if tokenizer is None else files_of_tokenizer(tokenizer)


def fingerprint(source: PieceSource, *how: Any) -> str:
    """Return a short name of what is read, as it is now, and how it is written: plain values that JSON can hold."""
    places = [[d] if d.is_file() else d.iterdir() for d in source.directories]  # of a merge: in its order
    found = [sorted(f.resolve() for f in files if f.is_file()) for files in places]
    files = [[(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in each] for each in found]
    told = [source.kind, source.shares, files, *how, write_published(source.config)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def without_mtp(source: PieceSource) -> PieceSource:
    """Return `source` as a model without its MTP layers."""
    rest = copy.copy(source)
    rest.config = source.config.without_mtp()
    return rest


def _stored_as(dtype: torch.dtype | None) -> str:
    return "Stored as they were." if dtype is None else f"Stored as {str(dtype).removeprefix('torch.')}."


def _stored_form(source: PieceSource, piece: Piece, export: ExportFormat) -> tuple[Tensor, ...]:
    """Return what `export` stores of a piece; codes that may stay are not quantised again."""
    if export.keeps_codes and isinstance(source, SafetensorsPieces) and source.is_quantized(piece):
        return source.stored(piece)
    return encode(piece, source.read(piece), export)


def _write_distributed(
    source: PieceSource,
    directory: Path,
    layout: Layout,
    dtype: torch.dtype | None,
    workers: int,
    progress: Progress | None,
) -> None:
    def dtype_of(piece: Piece) -> torch.dtype:
        return torch.float32 if piece.float32 else dtype or source.dtype(piece)

    advance = _counter(published_pieces(source.config), progress)
    write_pieces(source, directory, layout, dtype_of, advance, workers=workers)


def _counter(pieces: list[Piece], progress: Progress | None) -> Callable[[int], None]:
    total, done, lock = len(pieces), 0, threading.Lock()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(done, total)

    return advance


def _finish(
    directory: Path,
    source: PieceSource,
    files: list[Path],
    export: ExportFormat,
    name: str,
    finish: Callable[[Path], None] | None,
) -> None:
    write_beside(directory, source, files, storage_of(export), name=name)
    if finish is not None:
        finish(directory)
