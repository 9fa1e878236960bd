"""Gradients of experts' weights in FP8, from columns in tiles of 128 rows."""

import torch
from torch import Tensor

from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton import weight_grad


def why_not(gradients: Fp8Tensor, rows: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> str | None:
    return weight_grad.refuse_operands(gradients, rows, offsets=offsets)


def forward(gradients: Fp8Tensor, rows: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    return weight_grad.of_columns(gradients, rows, offsets, dtype)
