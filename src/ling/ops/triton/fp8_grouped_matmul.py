"""Rows in FP8, sorted by expert, each by the weight of its expert; nothing is asked of the device."""

import torch
from torch import Tensor

from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton.fp8_matmul import multiply, refuse_product

_MOST_EXPERTS = 1024


def why_not(rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> str | None:
    if len(offsets) > _MOST_EXPERTS:
        return f"a program looks through at most {_MOST_EXPERTS} experts"
    return refuse_product(rows, weights, offsets)


def forward(rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    return multiply(rows, weights, offsets, dtype)
