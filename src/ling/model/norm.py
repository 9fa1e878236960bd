"""RMSNorm as a module."""

import torch
from torch import Tensor, nn

from ling.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """`weight` (H,), initialised to ones; no zero-centred gamma."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
