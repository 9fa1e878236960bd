"""What a strict load refuses: a config.json, tensors and codes that are not what the model has places for."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from ling.checkpoint.names import Piece, may_be_ignored
from ling.checkpoint.prepared import refuse_packed
from ling.checkpoint.source import TensorSource, quoted, read_json
from ling.config import ModelConfig
from ling.config.fields import shown
from ling.errors import CheckpointError
from ling.ops.fp8 import has_nan

logger = logging.getLogger(__name__)

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
"""What values may be stored in, by safetensors' names."""
_FLOATS = tuple(DTYPES)
_CODES = "F8_E4M3"


def check_quantization(directory: Path) -> None:
    """Raise CheckpointError if config.json declares quantised weights other than FP8 blocks of this family."""
    config_json = read_json(directory / "config.json")
    refuse_packed(config_json, directory)
    if not (declared := config_json.get("quantization_config")):
        return
    told = declared if isinstance(declared, dict) else {}
    method, block = told.get("quant_method"), told.get("weight_block_size")
    if method != "fp8" or block != [128, 128]:
        raise CheckpointError(
            f"{directory / 'config.json'}: quantization {_word(method)} with blocks {shown(block)} is not supported; "
            "FP8 checkpoints of this family have quant_method fp8 and weight_block_size [128, 128]"
        )


def check_keys(source: TensorSource, pieces: list[Piece], config: ModelConfig, directory: Path) -> None:
    """Raise CheckpointError if a tensor is missing, misshapen or has no place; say which may be left out."""
    wanted = {p.key for p in pieces}
    scales = {p.scale_key for p in pieces if p.quantized}
    if missing := [p.key for p in pieces if p.key not in source.tensors]:
        hint = ""
        if config.num_nextn_predict_layers and missing[0].startswith(f"model.layers.{config.num_hidden_layers}."):
            hint = "; config.json promises an MTP layer: set num_nextn_predict_layers to 0 or load with mtp=False"
        raise CheckpointError(f"{directory} lacks {_list(missing)}{hint}")
    ignored: dict[str, int] = {}
    unexpected = []
    for key in source.tensors:
        if key in wanted or key in scales:
            continue
        if (why := may_be_ignored(key, config)) is not None:
            ignored[why] = ignored.get(why, 0) + 1
        else:
            unexpected.append(key)
    if unexpected:
        raise CheckpointError(f"{directory} holds {_list(unexpected)}, which this model has no place for")
    for piece in pieces:  # before anything is allocated by what the configuration says
        for key in (piece.key, piece.scale_key) if piece.scale_key in source.tensors else (piece.key,):
            check_tensor(key, piece, source)
    for why, count in ignored.items():
        logger.warning("%s: left out %d tensors (%s)", directory, count, why)


def check_tensor(key: str, piece: Piece, source: TensorSource) -> None:
    """Raise CheckpointError if the header of a piece's tensor, or of its scales, has another shape or dtype."""
    stored = source.tensors[key]
    is_scale, has_scale = key == piece.scale_key, piece.scale_key in source.tensors
    shape = piece.scale_shape if is_scale else piece.shape
    if stored.shape != shape:
        raise CheckpointError(
            f"tensor {key} is {stored.shape} in {stored.file.name}, the model of config.json has {shape}; "
            "mend config.json or convert the checkpoint again"
        )
    allowed = ("F32",) if is_scale else (_CODES,) if has_scale else _FLOATS
    if stored.dtype not in allowed:
        why = f"without {piece.scale_key}" if stored.dtype == _CODES else f"where {' or '.join(allowed)} belongs"
        raise CheckpointError(f"tensor {key} in {stored.file.name} has dtype {stored.dtype} {why}")


def check_codes(piece: Piece, codes: Tensor, scale: Tensor, file: str) -> None:
    """Raise CheckpointError if codes are NaN, or scales not positive and finite."""
    if has_nan(codes):
        raise CheckpointError(f"tensor {piece.key} in {file} has codes that are NaN")
    if not bool((scale > 0).all() and torch.isfinite(scale).all()):
        raise CheckpointError(f"{piece.scale_key} in {file} has scales that are not positive")


def _word(value: object) -> str:
    return quoted(value) if isinstance(value, str) else shown(value)


def _list(keys: list[str]) -> str:
    return quoted(keys[0]) if len(keys) == 1 else f"{quoted(keys[0])} and {len(keys) - 1} more tensors"
