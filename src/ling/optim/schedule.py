"""Learning rate by step: linear warm-up, then constant. Averaging snapshots stands in for the decay (WSM)."""

from ling.config.training import OptimConfig


def lr_at(step: int, optim: OptimConfig) -> float:
    """Return the learning rate of update `step`, counted from 0."""
    return optim.lr * min(1.0, (step + 1) / max(1, optim.warmup_steps))
