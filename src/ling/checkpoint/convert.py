"""From a training checkpoint to published safetensors, one tensor at a time."""

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ling.checkpoint.dcp import DcpSource
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.save import ExportFormat, write_checkpoint
from ling.checkpoint.writer import DEFAULT_SHARD_BYTES
from ling.config import ModelConfig, read_published

TOKENIZER_DIRECTORY = "tokenizer"
MODEL_PREFIX = "model/"
"""Of the model's tensors in a training checkpoint."""


def convert_dcp(
    source: Path,
    target: Path,
    export: ExportFormat,
    *,
    tokenizer: Path | None = None,
    mtp: bool = True,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ModelConfig:
    """Write the model of training checkpoint `source` to `target`.

    tokenizer  directory whose files go along; None: the checkpoint's own, if it has one
    mtp        False leaves MTP layers out
    progress   called with (tensors done, tensors in all)
    """
    dcp = DcpSource(source)
    config = read_published(dcp.facts()["model"], where=str(source / "training.json"))
    if not mtp:
        config = config.without_mtp()
    files = tokenizer or source / TOKENIZER_DIRECTORY
    total, done = len(published_pieces(config)), 0
    cached: tuple[str, Tensor] | None = None

    def read(piece: Piece) -> Tensor:
        # Pieces of one stacked tensor follow each other: keep the last one read.
        nonlocal cached
        if cached is None or cached[0] != piece.parameter:
            cached = (piece.parameter, dcp.read(MODEL_PREFIX + piece.parameter))
        return piece.part_of(cached[1])

    def advance(_: Piece) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    def copy_tokenizer(directory: Path) -> None:
        if files.is_dir():
            shutil.copytree(files, directory, dirs_exist_ok=True)

    write_checkpoint(
        target, config, read, export, max_shard_bytes=max_shard_bytes, overwrite=overwrite,
        finish=copy_tokenizer, progress=advance,
    )  # fmt: skip
    return config
