"""Grouped linear through one grouped GEMM per product."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

from ling.ops.fp8 import Fp8BlockWeight
from ling.ops.packed import PackedWeight
from ling.ops.torch.autograd import run

_ALIGN_BYTES = 16  # grouped_mm takes strides that are multiples of this, on every device


def why_not(rows: Tensor, weights: Tensor | Fp8BlockWeight | PackedWeight, offsets: Tensor) -> str | None:
    if isinstance(weights, PackedWeight):
        return "of packed weights only those in use are worth unpacking"
    if rows.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"grouped_mm does not take {rows.dtype}"
    if rows.numel() == 0:
        return "there are no rows"
    if any(size * rows.element_size() % _ALIGN_BYTES for size in weights.shape[1:]):
        return f"rows of {tuple(weights.shape[1:])} are not multiples of {_ALIGN_BYTES} bytes"
    return None


def forward(rows: Tensor, weights: Tensor | Fp8BlockWeight, offsets: Tensor) -> Tensor:
    values = weights.dequantize(rows.dtype) if isinstance(weights, Fp8BlockWeight) else weights
    out: Tensor = run(_GroupedLinear, rows, values, offsets)
    return out


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, offsets)
        return grouped_mm(rows.contiguous(), weights.transpose(1, 2), offs=offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weights, offsets = ctx.saved_tensors
        dy = dy.contiguous()
        drows = grouped_mm(dy, weights, offs=offsets) if ctx.needs_input_grad[0] else None
        dweights = grouped_weight_grad(dy, rows, offsets) if ctx.needs_input_grad[1] else None
        return drows, dweights, None


def grouped_weight_grad(dy: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """Return dy[group].T @ rows[group] for each group: (R, M), (R, K) -> (E, M, K)."""
    return grouped_mm(dy.t(), rows, offs=offsets)
