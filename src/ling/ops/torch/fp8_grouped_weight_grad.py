"""Weight gradients of experts through torch's grouped GEMM over bfloat16 values in float32."""

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from ling.ops.fp8_tensor import Fp8Tensor, bfloat16_values
from ling.ops.torch.linear import why_not as why_not_values


def why_not(gradients: Tensor, rows: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> str | None:
    weights = torch.empty(0, gradients.shape[1], rows.shape[1], device="meta")
    return why_not_values(torch.empty(rows.shape, device="meta"), weights, offsets)


def forward(gradients: Tensor, rows: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    return grouped_mm(bfloat16_values(gradients).t(), bfloat16_values(rows), offs=offsets).to(dtype)
