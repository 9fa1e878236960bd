"""Strict loading: every tensor has a place, every place gets a tensor, and each is looked at on the way."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ling.checkpoint.finite import check_finite
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.packing import Weights, exact_dtype, fit_routers, pack, packed_format
from ling.checkpoint.pages import PageMode, to_empty_in_huge_pages
from ling.checkpoint.prepared import is_packed
from ling.checkpoint.prepared_load import check_options, load_prepared
from ling.checkpoint.source import StoredTensor, TensorSource, read_json
from ling.checkpoint.strict import DTYPES, check_codes, check_keys, check_quantization, check_tensor
from ling.config import ModelConfig, read_published
from ling.errors import CheckpointError, ConfigError
from ling.model import CausalLM
from ling.model.linear import Linear
from ling.model.moe import Experts
from ling.model.packed import SCALES_SUFFIX
from ling.ops.fp8 import dequantize_e4m3_block
from ling.ops.packed import quantize

Fp8Mode = Literal["dequantize", "keep"]


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
    check_quantization(directory)
    source = TensorSource(directory)
    pieces = published_pieces(config)
    check_keys(source, pieces, config, directory)
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
        check_quantization(directory)
        self._source = TensorSource(directory)
        check_keys(self._source, published_pieces(config), config, directory)

    def is_quantized(self, piece: Piece) -> bool:
        return piece.scale_key in self._source.tensors

    def dtype(self, piece: Piece) -> torch.dtype:
        """Return the dtype of `values`."""
        return torch.float32 if self.is_quantized(piece) else DTYPES[self._source.tensors[piece.key].dtype]

    def stored(self, piece: Piece) -> tuple[Tensor, ...]:
        """Return a piece's values, or its codes and scales."""
        keys = (piece.key, piece.scale_key) if self.is_quantized(piece) else (piece.key,)
        for key in keys:
            check_tensor(key, piece, self._source)
        tensors = tuple(self._source.get(key) for key in keys)
        if len(tensors) == 2:
            check_codes(piece, *tensors, self._source.tensors[piece.key].file.name)
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
        check_tensor(key, piece, source)
        if piece.scale_key not in source.tensors:
            yield piece, stored, tensor, None
            continue
        other = waiting.pop(piece.key if key == piece.scale_key else piece.scale_key, None)
        if other is None:
            waiting[key] = tensor
            continue
        codes, scale = (other, tensor) if key == piece.scale_key else (tensor, other)
        check_codes(piece, codes, scale, source.tensors[piece.key].file.name)
        yield piece, source.tensors[piece.key], codes, scale
    assert not waiting, list(waiting)


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
