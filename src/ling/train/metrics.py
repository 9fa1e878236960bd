"""What a router does, in four numbers per layer, from the tokens each expert got."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RouterTelemetry:
    """Balance of one sparse layer over some tokens."""

    max_violation: float
    """MaxVio: load of the busiest expert over the mean load, minus 1 (arXiv 2408.15664, section 4)."""
    load_cv: float
    """Standard deviation of the load over its mean."""
    load_entropy: float
    """Entropy of the load over its maximum, log E: 1 is perfect balance, 0 is one expert for all."""
    dead_experts: int
    """Experts that got no token."""


def router_telemetry(counts: Tensor) -> RouterTelemetry:
    """Summarise token counts (E,) of one layer."""
    load = counts.to(torch.float64)
    mean = load.mean()
    if mean == 0:
        return RouterTelemetry(0.0, 0.0, 1.0, len(load))
    share = load / load.sum()
    entropy = torch.special.entr(share).sum() / torch.tensor(float(len(load)), dtype=torch.float64).log()
    return RouterTelemetry(
        max_violation=float(load.max() / mean - 1),
        load_cv=float(load.std(correction=0) / mean),
        load_entropy=float(entropy) if len(load) > 1 else 1.0,
        dead_experts=int((load == 0).sum()),
    )


def worst(layers: Mapping[int, RouterTelemetry]) -> RouterTelemetry | None:
    """Return the least balanced value of each number over all layers; None if there are no sparse layers."""
    values = list(layers.values())
    if not values:
        return None
    return RouterTelemetry(
        max_violation=max(t.max_violation for t in values),
        load_cv=max(t.load_cv for t in values),
        load_entropy=min(t.load_entropy for t in values),
        dead_experts=max(t.dead_experts for t in values),
    )
