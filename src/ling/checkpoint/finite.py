"""Weights are finite; what is not has diverged or is damaged, and goes neither in nor out."""

import math

import torch
from torch import Tensor

from ling.errors import CheckpointError

_EXPONENT = 0x7C00
"""Of float16; all bits set where a number is not finite."""


def check_finite(values: Tensor, what: str) -> None:
    """Raise CheckpointError that starts with `what` if a value is NaN or infinite."""
    # One pass without temporaries: NaN and infinities reach the extremes.
    if values.numel() and not all(math.isfinite(x) for x in values.detach().aminmax()):
        raise CheckpointError(f"{what} has values that are NaN or infinite")


def check_scales(scales: Tensor, what: str) -> None:
    """Raise CheckpointError that starts with `what` if a float16 scale is NaN or infinite.

    In integers: torch has no fast way through float16 on a CPU, and a large model has a gigabyte of scales.
    """
    if scales.numel() and int((scales.view(torch.int16) & _EXPONENT).amax()) == _EXPONENT:
        raise CheckpointError(f"{what} has scales that are NaN or infinite")
