"""Routed experts for a few tokens, forward only: two launches."""

import torch
from torch import Tensor

from ling.ops.triton.available import next_power_of_two

MOST_PAIRS = 64
"""Rows up to which reading an expert once per row is no worse than sorting rows by expert."""
_OUTPUTS = 16
_INPUTS = 256


def mix_few(x: Tensor, ids: Tensor, mix: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """Return what `mix_experts` does, roundings and all: x (N, H), ids and mix (N, k) -> (N, H)."""
    from ling.ops.triton.kernels import moe_decode as kernels

    (N, H), k, F = x.shape, ids.shape[1], down_proj.shape[2]
    x, ids = x.contiguous(), ids.contiguous()
    hidden = x.new_empty(N * k, F)
    kernels.expert_hidden[(N * k, -(-F // _OUTPUTS))](
        x, ids, gate_up_proj.contiguous(), hidden,
        CHOICES=k, H=H, F=F, BLOCK_F=_OUTPUTS, BLOCK_H=min(_INPUTS, next_power_of_two(H)),
    )  # fmt: skip
    out = torch.empty_like(x)
    kernels.expert_outputs[(N, -(-H // _OUTPUTS))](
        hidden, ids, mix.float().contiguous(), down_proj.contiguous(), out,
        CHOICES=k, H=H, F=F, BLOCK_H=_OUTPUTS, BLOCK_F=min(_INPUTS, next_power_of_two(F)),
    )  # fmt: skip
    return out
