"""Strict loading: every tensor has a place, every place gets a tensor, and each is looked at on the way."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ling.checkpoint.finite import check_finite
from ling.checkpoint.names import Piece, may_be_ignored, published_pieces
from ling.checkpoint.packing import Weights, exact_dtype, fit_routers, pack, packed_format
from ling.checkpoint.pages import PageMode, to_empty_in_huge_pages
from ling.checkpoint.prepared import is_packed, refuse_packed
from ling.checkpoint.prepared_load import check_options, load_prepared
from ling.checkpoint.source import StoredTensor, TensorSource, quoted, read_json
from ling.config import ModelConfig, read_published
from ling.config.fields import shown
from ling.errors import CheckpointError, ConfigError
from ling.model import CausalLM
from ling.model.linear import Linear
from ling.model.moe import Experts
from ling.model.packed import SCALES_SUFFIX
from ling.ops.fp8 import dequantize_e4m3_block, has_nan
from ling.ops.packed import quantize

logger = logging.getLogger(__name__)

Fp8Mode = Literal["dequantize", "keep"]

_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
_FLOATS = tuple(_DTYPES)
_CODES = "F8_E4M3"


def read_config(directory: Path | str, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """Return the model that `directory`/config.json describes, with keys of `overrides` laid over it."""
    path = Path(directory) / "config.json"
    return read_published({**read_json(path), **(overrides or {})}, where=str(path))


@torch.no_grad()
def load_model(
    directory: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    fp8: Fp8Mode = "dequantize",
    weights: Weights | None = None,
    mtp: bool = True,
    overrides: Mapping[str, Any] | None = None,
    pages: PageMode = "mapped",
    huge_pages: bool = False,
) -> CausalLM:
    """Load a safetensors checkpoint, one tensor at a time: peak memory is the model and one tensor.

    dtype  of parameters; None: as published. Routers are float32 always, or, beside packed `weights`, bfloat16 if exact
    fp8    what happens to block-quantised weights: turned into values, or kept as codes and scales
    weights  packed formats that matrices are quantised to; the embedding stays a table, as published
    mtp    False leaves MTP layers out
    overrides  keys laid over config.json
    pages  where the weights of a prepared checkpoint lie, which is recognised; others are always copied
    huge_pages  copy them, on a CPU, into one stretch of memory that is read faster; for models that stay as they are
    Raises CheckpointError that names the tensor and the file: missing, unexpected, misshapen, non-finite.
    """
    directory = Path(directory)
    config = read_config(directory, overrides)
    if not mtp:
        config = config.without_mtp()
    if is_packed(told := read_json(directory / "config.json")):
        stored = check_options(told, directory, dtype=dtype, device=device, fp8=fp8, weights=weights)
        return load_prepared(directory, config, stored, pages)
    _check_quantization(directory)
    source = TensorSource(directory)
    pieces = published_pieces(config)
    _check_keys(source, pieces, config, directory)
    with torch.device("meta"):
        model = CausalLM(config).to(dtype or getattr(torch, config.torch_dtype))
    if fp8 == "keep":
        if weights is not None:
            raise ConfigError("weights are kept in FP8 or packed, not both; leave fp8='keep' out")
        _make_room_for_codes(model, source, pieces)
    if weights is not None:
        pack(model, weights)
        fit_routers(model, lambda key: exact_dtype(source.get(key)))
    if huge_pages and torch.device(device).type == "cpu":
        to_empty_in_huge_pages(model)
    else:
        model.to_empty(device=device)
    fill(model, source, pieces)
    return model.requires_grad_(fp8 != "keep" and weights is None)


class PieceReader:
    """Random access to the pieces of a safetensors checkpoint, with the checks of a strict load."""

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        _check_quantization(directory)
        self._source = TensorSource(directory)
        _check_keys(self._source, published_pieces(config), config, directory)

    def is_quantized(self, piece: Piece) -> bool:
        return piece.scale_key in self._source.tensors

    def dtype(self, piece: Piece) -> torch.dtype:
        """Return the dtype of `values`."""
        return torch.float32 if self.is_quantized(piece) else _DTYPES[self._source.tensors[piece.key].dtype]

    def stored(self, piece: Piece) -> tuple[Tensor, ...]:
        """Return a piece's values, or its codes and scales."""
        keys = (piece.key, piece.scale_key) if self.is_quantized(piece) else (piece.key,)
        for key in keys:
            _check_tensor(key, piece, self._source)
        tensors = tuple(self._source.get(key) for key in keys)
        if len(tensors) == 2:
            _check_codes(piece, *tensors, self._source.tensors[piece.key].file.name)
        return tensors

    def values(self, piece: Piece) -> Tensor:
        """Return a piece's values as stored, or block-quantised ones in float32."""
        values, *scale = self.stored(piece)
        if scale:
            values = dequantize_e4m3_block(values, scale[0], torch.float32)
        check_finite(values, f"tensor {piece.key} in {self._source.tensors[piece.key].file.name}")
        return values


def fill(model: CausalLM, source: TensorSource, pieces: list[Piece]) -> None:
    """Copy every piece into its place in `model`."""
    state = model.state_dict()
    for piece, stored, values, scale in _read_pieces(source, pieces):
        place = state[piece.parameter]
        if place.dtype == torch.float8_e4m3fn:
            assert scale is not None, piece.key
            piece.part_of(place).copy_(values)
            piece.part_of_scale(state[piece.scale_parameter]).copy_(scale)
            continue
        if scale is not None:
            values = dequantize_e4m3_block(values, scale, torch.float32)
        check_finite(values, f"tensor {piece.key} in {stored.file.name}")
        if (format := packed_format(model, piece)) is None:
            piece.part_of(place).copy_(values)
            continue
        quantized = quantize(values, format)
        piece.part_of_tiles(place).copy_(quantized.codes)
        piece.part_of_tiles(state[piece.parameter + SCALES_SUFFIX]).copy_(quantized.scales)


def _read_pieces(
    source: TensorSource, pieces: list[Piece]
) -> Iterator[tuple[Piece, StoredTensor, Tensor, Tensor | None]]:
    """Yield each piece with its tensor and, if it is quantised, its scales, shapes and dtypes checked."""
    by_key = {piece.key: piece for piece in pieces}
    # A code tensor waits for its scales or the other way round; they may lie in different files.
    waiting: dict[str, Tensor] = {}
    keys = [k for p in pieces for k in ((p.scale_key, p.key) if p.scale_key in source.tensors else (p.key,))]
    order = {key: i for i, key in enumerate(keys)}
    for key, tensor in source.read(sorted(keys, key=lambda k: (source.tensors[k].file, order[k]))):
        stored = source.tensors[key]
        piece = by_key.get(key) or by_key[key.removesuffix("_scale_inv")]
        _check_tensor(key, piece, source)
        if piece.scale_key not in source.tensors:
            yield piece, stored, tensor, None
            continue
        other = waiting.pop(piece.key if key == piece.scale_key else piece.scale_key, None)
        if other is None:
            waiting[key] = tensor
            continue
        codes, scale = (other, tensor) if key == piece.scale_key else (tensor, other)
        _check_codes(piece, codes, scale, source.tensors[piece.key].file.name)
        yield piece, source.tensors[piece.key], codes, scale
    assert not waiting, list(waiting)


def _check_keys(source: TensorSource, pieces: list[Piece], config: ModelConfig, directory: Path) -> None:
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
            _check_tensor(key, piece, source)
    for why, count in ignored.items():
        logger.warning("%s: left out %d tensors (%s)", directory, count, why)


def _check_tensor(key: str, piece: Piece, source: TensorSource) -> None:
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


def _check_codes(piece: Piece, codes: Tensor, scale: Tensor, file: str) -> None:
    if has_nan(codes):
        raise CheckpointError(f"tensor {piece.key} in {file} has codes that are NaN")
    if not bool((scale > 0).all() and torch.isfinite(scale).all()):
        raise CheckpointError(f"{piece.scale_key} in {file} has scales that are not positive")


def _check_quantization(directory: Path) -> None:
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


def _word(value: object) -> str:
    return quoted(value) if isinstance(value, str) else shown(value)


def _make_room_for_codes(model: CausalLM, source: TensorSource, pieces: list[Piece]) -> None:
    """Turn every module whose checkpoint tensors are all quantised into one that holds codes."""
    coded: dict[str, bool] = {}
    for piece in pieces:
        if piece.quantized:
            name = piece.parameter.rpartition(".")[0]
            coded[name] = coded.get(name, True) and piece.scale_key in source.tensors
    if not any(coded.values()):
        raise CheckpointError(f"{source.directory} has no FP8 weights to keep; load it without fp8='keep'")
    for name, whole in coded.items():
        module = model.get_submodule(name)
        assert isinstance(module, Linear | Experts), name
        if whole:
            module.keep_fp8()


def _list(keys: list[str]) -> str:
    return quoted(keys[0]) if len(keys) == 1 else f"{quoted(keys[0])} and {len(keys) - 1} more tensors"
