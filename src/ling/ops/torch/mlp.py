"""SwiGLU feed-forward that saves its two projections and recomputes the rest."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.torch.autograd import run


def why_not(x: Tensor, gate_proj: Any, up_proj: Any, down_proj: Any) -> str | None:
    if not all(isinstance(w, Tensor) for w in (gate_proj, up_proj, down_proj)):
        return "quantised and adapted weights go through linear"
    if x.dtype != torch.float32:
        return "the published rounding order of low precision is the composition's"
    return None


def forward(x: Tensor, gate_proj: Tensor, up_proj: Tensor, down_proj: Tensor) -> Tensor:
    y: Tensor = run(_SwigluMlp, x, gate_proj, up_proj, down_proj)
    return y


class _SwigluMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_proj: Tensor, up_proj: Tensor, down_proj: Tensor) -> Tensor:
        gate, up = x @ gate_proj.t(), x @ up_proj.t()
        ctx.save_for_backward(x, gate_proj, up_proj, down_proj, gate, up)
        return (torch.nn.functional.silu(gate) * up) @ down_proj.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, gate_proj, up_proj, down_proj, gate, up = ctx.saved_tensors
        silu = torch.nn.functional.silu(gate)
        ddown = dy.t() @ (silu * up)
        dact = dy @ down_proj
        dup = dact * silu
        dgate = torch.ops.aten.silu_backward(dact.mul_(up), gate)
        dx = dgate @ gate_proj
        dx.addmm_(dup, up_proj)
        return dx, dgate.t() @ x, dup.t() @ x, ddown
