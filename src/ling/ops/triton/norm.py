"""RMSNorm in one pass over memory each way, also followed by quantisation for an FP8 product."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.torch.autograd import run
from ling.ops.triton.available import FLOATS, next_power_of_two, refuse

_LARGEST_ROW = 16384
_TILE = 4096
"""Elements a program holds at once; longer rows are held whole."""
_PROGRAMS = 512
"""Partial sums of the weight's gradient: four programs for each of a Hopper's multiprocessors."""


def why_not(x: Tensor, weight: Tensor, eps: float) -> str | None:
    if x.shape[-1] > _LARGEST_ROW:
        return f"rows of {x.shape[-1]} do not fit into registers"
    if weight.dtype not in FLOATS:
        return f"it does not take a weight of {weight.dtype}"
    return refuse(x, weight)


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y: Tensor = run(_RmsNorm, x, weight, eps)
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inv_rms = rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inv_rms)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inv_rms = ctx.saved_tensors
        dx, dweight = rms_norm_backward(dy, x, weight, inv_rms)
        return dx, dweight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the normed x (..., H) and the inverse root-mean-square of its rows (rows,) float32."""
    y, inv_rms, _, _ = _launch(x, weight, eps, quantize=False)
    return y, inv_rms


def rms_norm_e4m3(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `rms_norm` does, then codes and scales as `quantize_e4m3_tile` makes them of its result.

    codes (..., H) float8_e4m3fn, scale (rows, ceil(H / 128)) float32
    """
    y, inv_rms, codes, scale = _launch(x, weight, eps, quantize=True)
    assert codes is not None
    assert scale is not None
    return y, inv_rms, codes, scale


def _launch(
    x: Tensor, weight: Tensor, eps: float, *, quantize: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    from ling.ops.triton.kernels import norm as kernels

    x = x.contiguous()
    H = x.shape[-1]
    N = x.numel() // H
    y = torch.empty_like(x, dtype=torch.promote_types(x.dtype, weight.dtype))
    inv_rms = torch.empty(N, dtype=torch.float32, device=x.device)
    codes = torch.empty_like(x, dtype=torch.float8_e4m3fn) if quantize else None
    scale = torch.empty(N, -(-H // 128), dtype=torch.float32, device=x.device) if quantize else None
    block = max(next_power_of_two(H), 128 if quantize else 1)
    rows = max(1, _TILE // block)
    kernels.rms_norm_forward[(-(-N // rows),)](
        x, weight.contiguous(), y, inv_rms, codes, scale, N, eps,
        H=H, ROWS=rows, BLOCK=block, QUANTIZE=quantize, num_warps=8 if block > 2048 else 4,
    )  # fmt: skip
    return y, inv_rms, codes, scale


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, inv_rms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight, in their dtypes; sums are float32, always in the same order."""
    from ling.ops.triton.kernels import norm as kernels

    x, dy = x.contiguous(), dy.contiguous()
    H = x.shape[-1]
    N = x.numel() // H
    block = next_power_of_two(H)
    rows = max(1, _TILE // block)
    programs = min(_PROGRAMS, -(-N // rows))
    dx = torch.empty_like(x)
    dweight = torch.empty(programs, H, dtype=torch.float32, device=x.device)
    kernels.rms_norm_backward[(programs,)](
        dy, x, weight.contiguous(), inv_rms, dx, dweight, N,
        H=H, ROWS=rows, BLOCK=block, num_warps=8 if block > 2048 else 4,
    )  # fmt: skip
    return dx, dweight.sum(0).to(weight.dtype)
