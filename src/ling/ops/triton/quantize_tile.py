"""Quantisation of rows in one pass over memory."""

import torch
from torch import Tensor

from ling.ops.triton.available import next_power_of_two, refuse_fp8

_MOST_TILES = 8
_ELEMENTS = 4096


def why_not(x: Tensor, kind: torch.dtype = torch.float8_e4m3fn, *, power_of_two: bool = True) -> str | None:
    return refuse_fp8(x)


def forward(x: Tensor, kind: torch.dtype = torch.float8_e4m3fn, *, power_of_two: bool = True) -> tuple[Tensor, Tensor]:
    from ling.ops.triton.kernels import quantize as kernels

    x = x.contiguous()
    K = x.shape[-1]
    N, num_tiles = x.numel() // K, -(-K // 128)
    codes = torch.empty_like(x, dtype=kind)
    scale = torch.empty(*x.shape[:-1], num_tiles, dtype=torch.float32, device=x.device)
    tiles = min(_MOST_TILES, next_power_of_two(num_tiles))
    rows = max(1, _ELEMENTS // (tiles * 128))
    kernels.quantize_tile[(-(-N // rows), -(-num_tiles // tiles))](
        x, codes, scale, N, K=K, ROWS=rows, TILES=tiles, POWER_OF_TWO=power_of_two
    )
    return codes, scale
