"""Learning rate by step: linear warm-up, then constant or falling.

A constant rate goes with averaging snapshots, which stands in for the decay (WSM, spec: training.md 9).
"""

import math

from ling.config.training import OptimConfig

_REMAINING = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "1-sqrt": lambda t: 1 - math.sqrt(t),
}
"""Share of the way from the peak to `end_lr` that is left at t, from 0 to 1."""


def lr_at(step: int, optim: OptimConfig, steps: int) -> float:
    """Return the learning rate of update `step`, counted from 0, of `steps`; the last one of a decay has `end_lr`."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    first = steps - optim.decay_steps if optim.schedule == "wsd" else optim.warmup_steps
    if step < first:
        return optim.lr
    remaining = _REMAINING[optim.decay if optim.schedule == "wsd" else optim.schedule]
    t = min(1.0, (step + 1 - first) / max(1, steps - first))
    return optim.end_lr + (optim.lr - optim.end_lr) * remaining(t)
