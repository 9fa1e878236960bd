"""Grouped products of FP8 operands through torch's grouped GEMM over their values in float32."""

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.torch.linear import why_not as why_not_values


def why_not(rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> str | None:
    return why_not_values(torch.empty(rows.shape, device="meta"), torch.empty(weights.shape, device="meta"), offsets)


def forward(rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    values, stack = rows.dequantize(torch.float32), weights.dequantize(torch.float32)
    return grouped_mm(values, stack.transpose(1, 2), offs=offsets).to(dtype)
