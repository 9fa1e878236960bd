"""Products of FP8 operands, accumulated in float32 (spec: training.md 5).

Products of codes are exact in float32; a power-of-two scale changes no digit of theirs, so that here operands are
turned back into values and multiplied. With float32 scales a value is rounded once more, by 2^-24 of itself.

    y    rows 1x128            x  weights 128x128                  fprop
    dx   gradients 1x128       x  transposed weights 128x128       dgrad
    dw   gradients in bfloat16 x  rows as they were kept, dequantised to bfloat16; or both in tiles of 128 rows (wgrad)
"""

from itertools import pairwise

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.fp8_tensor import Fp8Tensor, bfloat16_values


@op(
    triton="ling.ops.triton.fp8_matmul",
    scaled_mm="ling.ops.scaled_mm.fp8_matmul",
    deep_gemm="ling.ops.deep_gemm.fp8_matmul",
)
def fp8_matmul(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply rows (N, K), tiles, by a weight (M, K), blocks: (N, M) in `dtype`, rounded once."""
    return (rows.dequantize(torch.float32) @ weight.dequantize(torch.float32).T).to(dtype)


@op(
    triton="ling.ops.triton.fp8_grouped_matmul",
    torch="ling.ops.torch.fp8_grouped_matmul",
    deep_gemm="ling.ops.deep_gemm.fp8_grouped_matmul",
)
def fp8_grouped_matmul(rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply each group of rows by the weight of its expert.

    rows     (S, K) tiles; those from offsets[-1] on belong to nobody
    weights  (E, M, K) blocks
    offsets  (E,) int32; expert e has rows offsets[e - 1] up to offsets[e]
    return   (S, M) in `dtype`; rows that belong to nobody are undefined
    """
    values, stack = rows.dequantize(torch.float32), weights.dequantize(torch.float32)
    out = values.new_zeros(len(values), stack.shape[1])
    for e, (a, b) in enumerate(pairwise([0, *offsets.tolist()])):
        out[a:b] = values[a:b] @ stack[e].T
    return out.to(dtype)


@op(triton="ling.ops.triton.fp8_grouped_weight_grad", torch="ling.ops.torch.fp8_grouped_weight_grad")
def fp8_grouped_weight_grad(gradients: Tensor, rows: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradients[group].T @ rows[group] for each group of rows, as `fp8_weight_grad`.

    gradients  (S, M), rows (S, K) tiles: in padding one of them is zero; offsets (E,) as in `fp8_grouped_matmul`
    return     (E, M, K) in `dtype`; zero for an expert without rows
    """
    dy, x = bfloat16_values(gradients), bfloat16_values(rows)
    parts = [dy[a:b].T @ x[a:b] for a, b in pairwise([0, *offsets.tolist()])]
    return torch.stack(parts).to(dtype)


@op(triton="ling.ops.triton.fp8_grouped_columns")
def fp8_grouped_columns(gradients: Fp8Tensor, rows: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight gradients of `fp8_grouped_weight_grad` with both operands in FP8.

    gradients  (M, S), rows (K, S): column by column, in tiles of 128 rows; offsets are multiples of 128
    """
    dy, x = gradients.dequantize(torch.float32), rows.dequantize(torch.float32)
    parts = [dy[:, a:b] @ x[:, a:b].T for a, b in pairwise([0, *offsets.tolist()])]
    return torch.stack(parts).to(dtype)


@op(triton="ling.ops.triton.fp8_weight_grad")
def fp8_weight_grad(gradients: Tensor, rows: Fp8Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradients.T @ rows, both rounded to bfloat16 and summed in float32: (N, M), (N, K) -> (M, K)."""
    return (bfloat16_values(gradients).T @ bfloat16_values(rows)).to(dtype)


@op(triton="ling.ops.triton.fp8_columns")
def fp8_columns(gradients: Fp8Tensor, rows: Fp8Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradients @ rows.T of columns in FP8: (M, N), (K, N) -> (M, K)."""
    return (gradients.dequantize(torch.float32) @ rows.dequantize(torch.float32).T).to(dtype)


def columns_of(operand: Tensor | Fp8Tensor, kind: torch.dtype, *, power_of_two: bool) -> Fp8Tensor:
    """Quantise the columns of rows (N, K) in tiles of 128 rows: (K, N).

    Codes that came in tiles of rows are rounded a second time, which is why weight gradients are in bfloat16 unless
    asked otherwise.
    """
    values = operand.dequantize(torch.float32) if isinstance(operand, Fp8Tensor) else operand
    return Fp8Tensor.of_tiles(values.T, kind, power_of_two=power_of_two)
