"""Gradients that go into moments one microbatch after the other, before the one whose update completes the step.

An update takes a moment m to `b m + (1 - b) g`. What is to take part in it beside g is put into m before, divided by b:

    m += (1 - b) / b * g_1;  m += (1 - b) / b * g_2;  ...;  an update by g_n gives  b m + (1 - b) (g_1 + ... + g_n)

So one rule, one kernel and one place for decay and rounding serve a single microbatch and the last of many, and a step
that is given up in between leaves moments that the next step goes on with.
"""

import torch
from torch import Tensor

from ling.ops.adamw import Moment
from ling.ops.backend import op
from ling.optim.stored import CHUNK, Noise, as_stored


def share_of(decay: float) -> float:
    """Return what a gradient is multiplied by, for an update that decays the moment so and adds 1 - `decay` of it."""
    return (1 - decay) / decay


@op(triton="ling.ops.triton.gather")
def gather_(
    gradient: Tensor, mean: Moment, square: Moment | None, key: int, mean_share: float, square_share: float,
    offset: int = 0,
) -> None:  # fmt: skip
    """Add a gradient to a mean, or to momentum, and its square to the mean of squares, in place and piece by piece.

    gradient     (n,) bfloat16 or float32; sums are in float32
    square       None: there is none, as in Muon
    key, offset  of the noise, as in `ling.optim.update`
    """
    noise = Noise(key, gradient.device, offset)
    means = as_stored(mean, "mean", noise)
    squares = None if square is None else as_stored(square, "square", noise)
    for first in range(0, len(gradient), CHUNK):
        here = slice(first, first + CHUNK)
        g = gradient[here].to(torch.float32)
        values = means.read(here)
        means.write(here, values.add_(g, alpha=mean_share))
        if squares is not None:
            values = squares.read(here)
            squares.write(here, values.addcmul_(g, g, value=square_share))
