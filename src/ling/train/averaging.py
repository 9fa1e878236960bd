"""Warm-up, stable, merge: the mean of the last snapshots in place of a learning-rate decay.

A uniform mean of k snapshots acts like a linear decay over their span (spec: training.md 9; arXiv 2507.17634). The
mean is kept as a running sum in float32, so k snapshots cost one copy of the model.
"""

import torch
from torch import Tensor, nn

from ling.config.training import TrainConfig


class SnapshotMean:
    """Running mean of a model's parameters and buffers."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Take a snapshot."""
        for name, value in model.state_dict().items():
            if name in self.sums:
                self.sums[name].add_(value)
            else:
                self.sums[name] = value.detach().to(torch.float32, copy=True)
        self.count += 1

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite `model` with the mean; does nothing before the first snapshot."""
        if self.count:
            for name, value in model.state_dict().items():
                value.copy_(self.sums[name] / self.count)


def is_snapshot_step(step: int, train: TrainConfig, seconds: float = 0.0) -> bool:
    """Whether the weights after `step` updates, and `seconds` of training, belong into the mean.

    They do on every `average_every`-th of the last steps; and where `max_minutes` is going to end the run before its
    last step, on those of the last part of the time, the same share.
    """
    span, remaining = train.average_last * train.average_every, train.steps - step
    late = bool(train.max_minutes) and seconds > 60 * train.max_minutes * (1 - span / train.steps)
    return bool(span) and (remaining < span or late) and remaining % train.average_every == 0
