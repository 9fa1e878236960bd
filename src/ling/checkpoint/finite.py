"""Weights are finite; what is not has diverged or is damaged, and goes neither in nor out."""

import math

from torch import Tensor

from ling.errors import CheckpointError


def check_finite(values: Tensor, what: str) -> None:
    """Raise CheckpointError that starts with `what` if a value is NaN or infinite."""
    # One pass without temporaries: NaN and infinities reach the extremes.
    if values.numel() and not all(math.isfinite(x) for x in values.detach().aminmax()):
        raise CheckpointError(f"{what} has values that are NaN or infinite")
