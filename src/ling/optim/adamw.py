"""AdamW over the parameters of a model: weight decay on matrices, none on norms and biases."""

import torch
from torch import nn

from ling.config.training import OptimConfig


def build_adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Return torch's fused AdamW with two groups; each group's `lr` is set by `set_lr` before a step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
