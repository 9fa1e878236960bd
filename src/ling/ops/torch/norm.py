"""RMSNorm in two passes over memory forward and three backward.

Only for float32: there the two roundings of the published order are one, so the result differs from the
reference by the order of a sum at most.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.torch.autograd import run


def why_not(x: Tensor, weight: Tensor, eps: float) -> str | None:
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return "only float32 has a single rounding"
    return None


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y: Tensor = run(_RmsNorm, x, weight, eps)
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inv_rms = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inv_rms)
        return (x * inv_rms).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inv_rms = ctx.saved_tensors
        dx, dweight = rms_norm_backward(dy, x, weight, inv_rms)
        return dx, dweight, None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(mean(x^2) + eps) of each row, (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, inv_rms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight.

    With n = x * inv_rms: dweight = sum(dy * n), dx = inv_rms * (dy * weight - n * mean(dy * weight * n)).
    """
    normed = x * inv_rms
    dy_normed = dy * normed
    dweight = dy_normed.flatten(0, -2).sum(0)
    dot = (dy_normed @ weight).unsqueeze(-1).div_(x.shape[-1])
    dx = torch.addcmul(dy * weight, normed, dot, value=-1).mul_(inv_rms)
    return dx, dweight
