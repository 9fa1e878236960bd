"""Quantisation of weights in 128x128 blocks, with their transpose if it is wanted too; and that transpose by itself."""

from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.triton.available import refuse_fp8


class Blocks(NamedTuple):
    """Codes of matrices and the scales of their blocks."""

    codes: Tensor
    """(..., M, K)."""
    scale: Tensor
    """(..., ceil(M / 128), ceil(K / 128)) float32."""


def why_not(w: Tensor, kind: torch.dtype = torch.float8_e4m3fn, *, power_of_two: bool = True) -> str | None:
    return refuse_fp8(w)


def forward(w: Tensor, kind: torch.dtype = torch.float8_e4m3fn, *, power_of_two: bool = True) -> tuple[Tensor, Tensor]:
    return _quantize(w, kind, power_of_two, None)


def quantize_both_ways(
    w: Tensor, kind: torch.dtype = torch.float8_e4m3fn, *, power_of_two: bool = True
) -> tuple[Blocks, Blocks]:
    """Return the blocks of w (..., M, K) and those of its transpose (..., K, M), reading w once."""
    transposed = _empty(w.mT.shape, kind, w.device)
    return _quantize(w, kind, power_of_two, transposed), transposed


def transpose(blocks: Blocks) -> Blocks:
    """Return contiguous transposed codes and scales: exact, because blocks are square."""
    from ling.ops.triton.kernels import quantize as kernels

    codes, scale = blocks.codes.contiguous(), blocks.scale.contiguous()
    M, K = codes.shape[-2:]
    out = _empty(codes.mT.shape, codes.dtype, codes.device)
    kernels.transpose_block[_grid(codes)](
        codes.view(torch.uint8), scale, out.codes.view(torch.uint8), out.scale, M=M, K=K, num_warps=8
    )
    return out


def _quantize(w: Tensor, kind: torch.dtype, power_of_two: bool, transposed: Blocks | None) -> Blocks:
    from ling.ops.triton.kernels import quantize as kernels

    M, K = w.shape[-2:]
    out = _empty(w.shape, kind, w.device)
    kernels.quantize_block[_grid(w)](
        w.contiguous(), *out, *(transposed or (None, None)), M=M, K=K, POWER_OF_TWO=power_of_two, num_warps=8
    )
    return out


def _empty(shape: torch.Size, kind: torch.dtype, device: torch.device) -> Blocks:
    *stack, M, K = shape
    scale = torch.empty(*stack, -(-M // 128), -(-K // 128), dtype=torch.float32, device=device)
    return Blocks(torch.empty(shape, dtype=kind, device=device), scale)


def _grid(w: Tensor) -> tuple[int, int]:
    M, K = w.shape[-2:]
    return w.numel() // (M * K) * -(-M // 128), -(-K // 128)
