"""The one rule for arithmetic that must not happen in a low precision."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 where it is float64 already (gradient checks run there)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
