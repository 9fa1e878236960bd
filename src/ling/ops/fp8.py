"""E4M3 block quantisation: the export quantiser, the training quantiser, and the way back.

`scale` is always what codes are multiplied by to give values (published as `weight_scale_inv`).

    export    128x128 blocks of weights; amax floored at 1e-4 (spec: checkpoint.md 3)
    training  1x128 tiles of activations, 128x128 blocks of weights; no floor, power-of-two scales (training.md 5)

Values are clamped to +-448 before the cast: out of range, torch 2.11 gives NaN where 2.13 saturates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.precision import at_least_float32

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
E4M3_MAX = 448.0
LARGEST = {E4M3: E4M3_MAX, E5M2: 57344.0}
"""Finite value of each kind of code; clamping to it keeps E5M2 from its infinity, too."""
BLOCK = 128
EXPORT_AMAX_FLOOR = 1e-4
_NAN_CODE = 0x7F


@dataclass(frozen=True, slots=True)
class Fp8BlockWeight:
    """A weight kept as codes and the scales of its 128x128 blocks.

    codes  (..., M, K)  float8_e4m3fn
    scale  (..., S, ceil(K / 128))  float32
    rows   sizes of the matrices that are stacked along M, each with a grid of its own, so S is the sum of
           their ceil(rows / 128); (M,) for a plain matrix
    """

    codes: Tensor
    scale: Tensor
    rows: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the values, (..., M, K) in `dtype`."""
        codes = self.codes.split(self.rows, dim=-2)
        scales = self.scale.split([num_blocks(rows) for rows in self.rows], dim=-2)
        parts = [dequantize_e4m3_block(c, s, dtype) for c, s in zip(codes, scales)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def num_blocks(size: int) -> int:
    """Return how many blocks of 128 cover `size`."""
    return -(-size // BLOCK)


def quantize_e4m3_block(w: Tensor, *, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Quantise for export, one scale per 128x128 block.

    w       (M, K)  bfloat16 or float32
    return  codes (M, K) float8_e4m3fn, scale (ceil(M / 128), ceil(K / 128)) float32
    """
    blocks = _blocks(w)
    amax = blocks.abs().amax((1, 3)).clamp_min(EXPORT_AMAX_FLOOR)
    scale = amax / E4M3_MAX
    if power_of_two:
        scale = round_up_to_power_of_two(scale)
    return _crop(_saturate(blocks / scale[:, None, :, None]), w.shape), scale


@op(triton="ling.ops.triton.quantize_tile")
def quantize_tile(x: Tensor, kind: torch.dtype = E4M3, *, power_of_two: bool = True) -> tuple[Tensor, Tensor]:
    """Quantise activations or gradients for training, one scale per 1x128 tile of a row.

    x       (..., K)
    kind    float8_e4m3fn or float8_e5m2
    return  codes (..., K), scale (..., ceil(K / 128)) float32
    """
    K = x.shape[-1]
    tiles = torch.nn.functional.pad(x.float(), (0, -K % BLOCK)).unflatten(-1, (-1, BLOCK))
    encode = _training_encode_scale(tiles.abs().amax(-1), x.dtype, LARGEST[kind], power_of_two)
    codes = _saturate(tiles * encode[..., None], kind).flatten(-2)[..., :K]
    return codes.contiguous(), 1 / encode


@op(triton="ling.ops.triton.quantize_block")
def quantize_training_block(w: Tensor, kind: torch.dtype = E4M3, *, power_of_two: bool = True) -> tuple[Tensor, Tensor]:
    """Quantise weights for training: the tile rule over 128x128 blocks, each matrix of a stack on its own.

    w       (..., M, K)
    return  codes (..., M, K), scale (..., ceil(M / 128), ceil(K / 128)) float32
    """
    blocks = _blocks(w)
    encode = _training_encode_scale(blocks.abs().amax((-3, -1)), w.dtype, LARGEST[kind], power_of_two)
    return _crop(_saturate(blocks * encode[..., :, None, :, None], kind), w.shape), 1 / encode


@op(triton="ling.ops.triton.transpose_block")
def transpose_block(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return contiguous codes (..., K, M) and scales of the transposed matrices: exact, because blocks are square.

    codes  (..., M, K), scale (..., ceil(M / 128), ceil(K / 128)) float32
    """
    return codes.view(torch.uint8).mT.contiguous().view(codes.dtype), scale.mT.contiguous()


def quantize_e4m3_tile(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise by `quantize_tile` with the published choice: E4M3, power-of-two scales."""
    return quantize_tile(x)


def quantize_e4m3_training_block(w: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise by `quantize_training_block` with the published choice: E4M3, power-of-two scales."""
    return quantize_training_block(w)


def dequantize_e4m3_block(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes times the scale of their block, computed in float32 and rounded once.

    codes  (..., M, K), scale (..., ceil(M / 128), ceil(K / 128)); return (..., M, K) in `dtype`
    """
    M, K = codes.shape[-2:]
    whole = M // BLOCK
    columns = scale.repeat_interleave(BLOCK, -1)[..., :K]
    values = _to_float32(codes)
    values[..., : whole * BLOCK, :].unflatten(-2, (whole, BLOCK)).mul_(columns[..., :whole, None, :])
    values[..., whole * BLOCK :, :].mul_(columns[..., whole:, :])
    return values.to(dtype)


def dequantize_e4m3_tile(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes (..., K) times the scale (..., ceil(K / 128)) of their tile, in `dtype`."""
    return (_to_float32(codes) * scale.repeat_interleave(BLOCK, -1)[..., : codes.shape[-1]]).to(dtype)


def round_up_to_power_of_two(scale: Tensor) -> Tensor:
    """Return the smallest power of two that is at least `scale` (positive float32), exactly.

    Upstream rounds log2 in float32 first, so a scale one ulp above a power of two falls to it there.
    """
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in [0.5, 1)
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
    return torch.ldexp(torch.ones_like(scale), exponent)


def has_nan(codes: Tensor) -> bool:
    """Whether E4M3 codes hold a NaN, which is one code with either sign; there is no infinity."""
    return bool(codes.numel()) and int((codes.view(torch.int8) & _NAN_CODE).max()) == _NAN_CODE


def _to_float32(codes: Tensor) -> Tensor:
    """Return codes as float32: E4M3 on a CPU through float16 (13x torch 2.13's own cast, one core of an AMD EPYC).

    s eeee mmm becomes s 0eeee mmm0000000, a float16 that is 2^8 too small, subnormals included: the biases differ.
    """
    if codes.device.type != "cpu" or codes.dtype != E4M3 or has_nan(codes):
        return codes.float()
    shifted = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7)  # the sign is in both upper bits
    return shifted.bitwise_and_(-0x4001).view(torch.float16).float().mul_(256)


def _training_encode_scale(amax: Tensor, dtype: torch.dtype, largest: float, power_of_two: bool) -> Tensor:
    """Return largest / amax, rounded down to a power of two if asked; 1 where amax is 0, infinite or NaN."""
    usable = (amax > 0) & torch.isfinite(amax)
    encode = (largest / torch.where(usable, amax, 1.0)).clamp_max(torch.finfo(dtype).max)
    if power_of_two:
        mantissa, exponent = torch.frexp(encode)
        encode = torch.ldexp(torch.ones_like(mantissa), exponent - 1)
    return torch.where(usable, encode, 1.0)


def _blocks(w: Tensor) -> Tensor:
    """View `w` (..., M, K) as (..., M / 128, 128, K / 128, 128) in float32, zero-padded."""
    M, K = w.shape[-2:]
    padded = torch.nn.functional.pad(at_least_float32(w), (0, -K % BLOCK, 0, -M % BLOCK))
    return padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))


def _crop(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks.flatten(-4, -3).flatten(-2)[..., : shape[-2], : shape[-1]].contiguous()


def _saturate(x: Tensor, kind: torch.dtype = E4M3) -> Tensor:
    return x.clamp(-LARGEST[kind], LARGEST[kind]).to(kind)
