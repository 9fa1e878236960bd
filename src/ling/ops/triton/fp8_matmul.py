"""Rows in FP8 by one weight in FP8."""

import torch
from torch import Tensor

from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton.available import FP8, next_power_of_two, refuse_fp8


def why_not(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> str | None:
    return refuse_product(rows, weight)


def forward(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> Tensor:
    return multiply(rows, weight, None, dtype)


def refuse_product(rows: Fp8Tensor, weight: Fp8Tensor, offsets: Tensor | None = None) -> str | None:
    """Return why the kernel cannot multiply these, None where it can."""
    if (rows.layout, weight.layout) != ("tile", "block"):
        return f"it multiplies tiles by blocks, not {rows.layout}s by {weight.layout}s"
    if rows.shape[-1] % 16:
        return f"rows of {rows.shape[-1]} codes are not multiples of 16 bytes"
    return refuse_fp8(rows.codes, rows.scale, weight.codes, weight.scale, offsets, dtypes=FP8)


def multiply(rows: Fp8Tensor, weight: Fp8Tensor, offsets: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Launch the product of rows (S, K) with one weight (M, K), or with one of (E, M, K) for each group of rows."""
    from ling.ops.triton.kernels import fp8_gemm as kernels

    S, K = rows.shape
    M = weight.shape[-2]
    E = 1 if offsets is None else len(offsets)
    out = torch.empty(S, M, dtype=dtype, device=rows.codes.device)
    tile = tile_size(S, E)
    tiles = -(-S // tile["BLOCK_M"]) if offsets is None else S // tile["BLOCK_M"] + min(E, S)
    kernels.fp8_matmul[(tiles * -(-M // tile["BLOCK_N"]),)](
        rows.codes.contiguous(), rows.scale.contiguous(), weight.codes.contiguous(), weight.scale.contiguous(),
        offsets, out, S, E=E, M=M, K=K, EXPERTS=next_power_of_two(E), **tile,
    )  # fmt: skip
    return out


def tile_size(S: int, E: int) -> dict[str, int]:
    """Return the tile for S rows over E experts: 128 rows where they fill it, 64 where they would mostly be padding."""
    if S > 64 * E:
        return {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 4}
    return {"BLOCK_M": 64, "BLOCK_N": 128, "num_warps": 4, "num_stages": 4}
