"""Saving in the published layout: FP32, BF16, or FP8 blocks beside BF16."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ling.checkpoint.atomic import atomic_directory
from ling.checkpoint.finite import check_finite
from ling.checkpoint.names import SCALE_SUFFIX, Piece, published_pieces
from ling.checkpoint.packing import matrices
from ling.checkpoint.quantization import quantization_config
from ling.checkpoint.writer import DEFAULT_SHARD_BYTES, Entry, TensorSpec, write_shards
from ling.config import ModelConfig, write_published
from ling.errors import CheckpointError
from ling.model import CausalLM
from ling.ops.fp8 import dequantize_e4m3_block, quantize_e4m3_block

Precision = Literal["float32", "bfloat16", "float8"]
ScaleMode = Literal["published", "pow2", "fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFormat:
    """How tensors are written."""

    precision: Precision = "bfloat16"
    """float8: matrices of blocks as E4M3 codes, everything else bfloat16."""
    fp8_scales: ScaleMode | None = None
    """Rounding of FP8 scales: as the published export does per tensor, all powers of two, or none. None: codes and
    scales of an FP8 source stay as they are, other sources are quantised as the published export does."""

    @property
    def value_dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "float32" else torch.bfloat16

    def num_bytes(self, config: ModelConfig) -> int:
        """Return the bytes of all tensors of a model."""
        return sum(spec.nbytes for piece in published_pieces(config) for spec in _specs(piece, self, piece.key))

    @property
    def keeps_codes(self) -> bool:
        """Whether what is FP8 already is written as it is."""
        return self.precision == "float8" and self.fp8_scales is None

    def power_of_two(self, piece: Piece) -> bool:
        return self.fp8_scales == "pow2" if self.fp8_scales in ("pow2", "fp32") else piece.power_of_two_scale


MakePiece = Callable[[Piece], tuple[Tensor, ...]]
"""Gives what is stored of a piece, as `encode` does."""


@torch.no_grad()
def save_model(
    model: CausalLM,
    directory: Path | str,
    *,
    export: ExportFormat | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write `model` as a published checkpoint: shards, index, config.json.

    finish  is called with the directory before it appears under its name, to add tokenizer files and the like
    The directory appears whole or not at all. Raises CheckpointError for packed weights, which are for running alone.
    """
    if any(module.packed is not None for _, module in matrices(model)):
        raise CheckpointError(
            f"cannot write {directory}: the model's weights are packed; save what they were made from, and pack that "
            "with `ling convert --dtype`"
        )
    state = model.state_dict()
    export = export or ExportFormat()

    def make(piece: Piece) -> tuple[Tensor, ...]:
        place = piece.part_of(state[piece.parameter])
        if place.dtype != torch.float8_e4m3fn:
            return encode(piece, place, export)
        scale = piece.part_of_scale(state[piece.scale_parameter])
        if export.keeps_codes:
            return place, scale
        return encode(piece, dequantize_e4m3_block(place, scale, torch.float32), export)

    write_checkpoint(
        Path(directory), model.config, make, export,
        max_shard_bytes=max_shard_bytes, overwrite=overwrite, finish=finish,
    )  # fmt: skip


def write_checkpoint(
    directory: Path,
    config: ModelConfig,
    make: MakePiece,
    export: ExportFormat,
    *,
    overwrite: bool = False,
    resume: str | None = None,
    **options: Any,
) -> None:
    """Write a whole model.

    resume   as in `atomic_directory`: files that an interrupted call finished are kept
    options  as in `fill_with_pieces`
    """
    with atomic_directory(directory, overwrite=overwrite, resume=resume) as partial:
        fill_with_pieces(partial, published_pieces(config), make, export, config_json(config, export), **options)


def fill_with_pieces(
    directory: Path,
    pieces: list[Piece],
    make: MakePiece,
    export: ExportFormat,
    config: dict[str, Any],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    finish: Callable[[Path], None] | None = None,
    advance: Callable[[int], None] = lambda count: None,
    workers: int = 1,
    rename: Callable[[Piece], str] | None = None,
    file_name: str | None = None,
) -> None:
    """Write every piece that `make` gives, one at a time, into an existing directory.

    config     becomes config.json
    finish     is called with the directory at the end, to add files
    advance    is called with the number of pieces that are newly there
    workers    files written at the same time; `make` is then called from as many threads
    rename     gives each piece another key than its own
    file_name  one file of this name in place of numbered shards
    """

    def entry(piece: Piece) -> Entry:
        key = piece.key if rename is None else rename(piece)
        return Entry(_specs(piece, export, key), lambda: make(piece))

    write_shards(
        directory, [entry(p) for p in pieces], max_shard_bytes, workers=workers, name=file_name, advance=advance
    )
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    if finish is not None:
        finish(directory)


def config_json(config: ModelConfig, export: ExportFormat) -> dict[str, Any]:
    """Return the config.json of a checkpoint written in `export` format."""
    dtype: Literal["float32", "bfloat16"] = "float32" if export.precision == "float32" else "bfloat16"
    tree = write_published(replace(config, torch_dtype=dtype))
    if export.precision == "float8":
        tree["quantization_config"] = quantization_config(config)
    return tree


def _specs(piece: Piece, export: ExportFormat, key: str) -> tuple[TensorSpec, ...]:
    if piece.float32:
        return (TensorSpec(key, torch.float32, piece.shape),)
    if export.precision == "float8" and piece.quantized:
        codes = TensorSpec(key, torch.float8_e4m3fn, piece.shape)
        return codes, TensorSpec(key + SCALE_SUFFIX, torch.float32, piece.scale_shape)
    return (TensorSpec(key, export.value_dtype, piece.shape),)


def encode(piece: Piece, values: Tensor, export: ExportFormat) -> tuple[Tensor, ...]:
    """Return what is stored for a piece: its values, or codes and scales; CheckpointError if they are not finite."""
    check_finite(values, f"tensor {piece.key}")
    if piece.float32:
        return (values.float(),)
    if export.precision == "float8" and piece.quantized:
        return quantize_e4m3_block(values, power_of_two=export.power_of_two(piece))
    return (values.to(export.value_dtype),)
