"""The published 8-bit map of optimizer states: 256 values, dense where states are (Dettmers et al., arXiv 2110.02861).

Seven decades of a block's largest value; in each higher one there are twice as many values, midpoints of equal
intervals. Signed for means, unsigned for squares; 0 and 1 are among them (spec: training.md 6.1).
"""

import functools

import torch
from torch import Tensor

_DECADES = 7


def dynamic_map(*, signed: bool) -> Tensor:
    """Return the 256 values, ascending, float32 on the CPU."""
    positive = []
    for i in range(_DECADES):
        edges = torch.linspace(0.1, 1.0, 2 ** (i + (not signed)) + 1, dtype=torch.float64)
        positive.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (i + 1 - _DECADES))
    values = torch.cat([*positive, torch.tensor([0.0, 1.0], dtype=torch.float64)])
    if signed:
        values = torch.cat([values, *(-part for part in positive)])
    return values.sort().values.to(torch.float32)


@functools.cache
def tables(device: torch.device, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Return the 256 values and the 255 borders between them, on a device."""
    values = dynamic_map(signed=signed)
    return values.to(device), ((values[1:] + values[:-1]) / 2).to(device)
