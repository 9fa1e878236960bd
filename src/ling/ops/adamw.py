"""What one update of AdamW is told: how moments are kept, and its numbers.

The update itself is `ling.optim.update`, since what moments are kept in is the optimizers' business.
"""

from typing import NamedTuple

from torch import Tensor


class Moment(NamedTuple):
    """A moment as it is kept."""

    codes: Tensor
    """(n,) float32, bfloat16, float8_e4m3fn (of a square: codes of its root) or uint8 of the published map."""
    scale: Tensor | None
    """(ceil(n / 256),) float32 where codes are one byte."""


class AdamWRule(NamedTuple):
    """The numbers of one update."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    stochastic: bool
    """Whether bfloat16 weights are rounded by chance, else to nearest; moments in few bits always are."""
