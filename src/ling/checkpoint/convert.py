"""From any checkpoint to any other, one tensor at a time."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ling.checkpoint.atomic import atomic_directory
from ling.checkpoint.dcp import FACTS_NAME
from ling.checkpoint.dcp_writer import write_pieces
from ling.checkpoint.layout import megatron_layout, training_layout
from ling.checkpoint.megatron import FIRST_ITERATION, LATEST_NAME, write_common
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.pieces import TOKENIZER_DIRECTORY, PieceSource, SafetensorsPieces
from ling.checkpoint.save import ExportFormat, encode, write_checkpoint
from ling.checkpoint.writer import DEFAULT_SHARD_BYTES
from ling.config import write_published
from ling.errors import CheckpointError

Target = Literal["safetensors", "training", "megatron"]
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
) -> None:
    """Write `source` as a Hugging Face directory.

    tokenizer  directory whose files replace those that come with the source
    workers    files written at the same time, each with the source opened for itself
    Interrupted with Ctrl-C, the same call goes on from the files that are whole.
    """
    files = _files(source, tokenizer)
    write_checkpoint(
        target, source.config, _reader_per_thread(source), export, max_shard_bytes=max_shard_bytes, overwrite=overwrite,
        finish=lambda directory: _copy(files, directory), progress=_counter(source, progress), workers=workers,
        resume=_fingerprint(source, export, max_shard_bytes),
    )  # fmt: skip


def verify_safetensors(source: PieceSource, target: Path, export: ExportFormat, progress: Progress | None = None) -> int:
    """Compare every tensor of `target` with what `source` gives in `export` format, bit for bit; return how many."""
    written = SafetensorsPieces(target)
    advance = _counter(source, progress)
    pieces = published_pieces(source.config)
    for piece in pieces:
        for expected, found in zip(encode(piece, source.read(piece), export), written.stored(piece), strict=True):
            if expected.dtype != found.dtype or not torch.equal(expected.view(torch.uint8), found.view(torch.uint8)):
                raise CheckpointError(f"{piece.key} in {target} is not what {source.directory} holds; convert it again")
        advance(piece)
    return len(pieces)


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
    facts = {"step": 0, "snapshots": 0, "seconds": 0.0, "model": write_published(config)}
    with atomic_directory(target, overwrite=overwrite) as partial:
        write_pieces(source, partial, training_layout(config), _dtypes(source, dtype), _counter(source, progress))
        (partial / FACTS_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if files:
            (partial / TOKENIZER_DIRECTORY).mkdir()
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
    with atomic_directory(target, overwrite=overwrite) as partial:
        iteration = partial / FIRST_ITERATION
        iteration.mkdir()
        write_pieces(source, iteration, megatron_layout(config), _dtypes(source, dtype), _counter(source, progress))
        write_common(iteration, config)
        (partial / LATEST_NAME).write_text("1", encoding="utf-8")
        if files:
            (partial / TOKENIZER_DIRECTORY).mkdir()
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
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(source.directory.iterdir()) if f.is_file()]
    told = [str(source.directory.resolve()), files, asdict(export), max_shard_bytes, write_published(source.config)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _dtypes(source: PieceSource, dtype: torch.dtype | None) -> Callable[[Piece], torch.dtype]:
    return lambda piece: torch.float32 if piece.float32 else dtype or source.dtype(piece)


def _counter(source: PieceSource, progress: Progress | None) -> Callable[[Piece], None]:
    total, done = len(published_pieces(source.config)), 0

    def advance(_: Piece) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return advance


def _files(source: PieceSource, tokenizer: Path | None) -> list[Path]:
    return source.tokenizer_files() if tokenizer is None else [f for f in sorted(tokenizer.iterdir()) if f.is_file()]


def _copy(files: list[Path], directory: Path) -> None:
    for file in files:
        shutil.copy(file, directory / file.name)
