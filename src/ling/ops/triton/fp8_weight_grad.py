"""The gradient of one weight in bfloat16, from rows in FP8 dequantised where they are multiplied."""

import torch
from torch import Tensor

from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton import weight_grad


def why_not(gradients: Tensor, rows: Fp8Tensor, dtype: torch.dtype) -> str | None:
    return weight_grad.refuse_operands(gradients, rows)


def forward(gradients: Tensor, rows: Fp8Tensor, dtype: torch.dtype) -> Tensor:
    return weight_grad.of_rows(gradients, rows, None, dtype)
