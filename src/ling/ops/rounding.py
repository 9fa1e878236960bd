"""Stochastic rounding: up or down by chance, so that what is rounded is right on average.

Noise is 16 bits per value (`ops.noise.lane`); noise of 32,768 everywhere rounds to nearest, halves away from zero.
"""

import torch
from torch import Tensor

from ling.ops.fp8 import E4M3, E4M3_MAX

NEAREST = 0x8000
"""The noise that rounds to nearest."""
_NORMAL = 2.0**-6
"""Smallest normal value of E4M3; below it steps are 2^-9."""
_DROPPED = 20
"""Mantissa bits of float32 that E4M3 lacks."""
E4M3_SMALLEST = 2.0**-9


def round_to_bfloat16(x: Tensor, noise: Tensor | int) -> Tensor:
    """Round float32 to bfloat16; exactly unbiased, since 16 bits are dropped. What is not finite stays what it is."""
    bits = (x.view(torch.int32) + noise) & -0x10000
    return torch.where(torch.isfinite(x), bits.view(torch.float32), x).to(torch.bfloat16)


def round_to_e4m3(x: Tensor, noise: Tensor | int) -> Tensor:
    """Round float32 of at most 448 to E4M3; unbiased to 2^-16 of a step."""
    lower, upper, share = e4m3_neighbours(x.abs())
    up = share * 0x10000 + noise >= 0x10000
    return torch.where(up, upper, lower).copysign(x).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def round_squares_to_e4m3(squares: Tensor, noise: Tensor | int) -> Tensor:
    """Return E4M3 codes of roots whose squares are unbiased; `squares` are at most 448 squared, not negative.

    What is not zero never becomes zero: below the smallest code it is rounded up to it.
    """
    lower, upper, _ = e4m3_neighbours(squares.sqrt().clamp_max(E4M3_MAX))
    low, high = lower.square(), upper.square()
    share = (squares - low) / (high - low)
    up = (share * 0x10000 + noise >= 0x10000) | ((lower == 0) & (squares > 0))
    return torch.where(up, upper, lower).clamp_max(E4M3_MAX).to(E4M3)


def e4m3_neighbours(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values of E4M3 at or below `x` (float32, not negative) and above, and how far x is from the first.

    Steps below the smallest normal value are those of the binade above it: moved there, every value is cut alike.
    """
    moved = torch.where(x < _NORMAL, _NORMAL, 0.0)
    bits = (x + moved).view(torch.int32)
    low = bits & -(1 << _DROPPED)
    lower = low.view(torch.float32) - moved
    upper = (low + (1 << _DROPPED)).view(torch.float32) - moved
    return lower, upper, (bits - low).to(torch.float32) / (1 << _DROPPED)
