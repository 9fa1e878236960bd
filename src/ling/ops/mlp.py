"""SwiGLU: the gate's non-linearity, and the feed-forward built on it (spec: model.md 4.3)."""

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.linear import Projection, Weight, linear


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, element by element."""
    return torch.nn.functional.silu(gate) * up


@op(cpu="ling.ops.cpu.mlp", torch="ling.ops.torch.mlp")
def swiglu_mlp(
    x: Tensor, gate_proj: Weight | Projection, up_proj: Weight | Projection, down_proj: Weight | Projection
) -> Tensor:
    """Apply a dense or shared-expert feed-forward.

    x  (N, H); gate_proj, up_proj (F, H); down_proj (H, F); return (N, H)
    """
    return linear(swiglu(linear(x, gate_proj), linear(x, up_proj)), down_proj)
