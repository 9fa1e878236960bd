"""Updates that are held back where a gradient is large beside its second moment, each tensor's on its own.

A second moment that has not yet seen a sudden gradient makes its update too large. Dividing the rate by the root mean
square of gradient over root of second moment, where that is above 1, needs no norm of the whole gradient (Wortsman
et al., arXiv 2304.13013, section 3.5; after Adafactor, arXiv 1804.04235, section 6). Of several microbatches that are
gathered one by one the squares are added up, each over the second moment as it then is.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ling.distributed.parts import sum_over_parts
from ling.optim.stored import CHUNK, Stored


class UpdateRatios:
    """What rates are divided by; keeps what the microbatches of a step have added so far.

    square_ratio  this rank's share of the mean square of a parameter's gradient over its second moment, () float32
    """

    def __init__(self, square_ratio: Callable[[Tensor], Tensor]) -> None:
        self._square_ratio = square_ratio
        self._gathered: dict[Tensor, Tensor] = {}

    def add(self, parameter: Tensor) -> None:
        """Note a microbatch that will not be the last, before its gradient goes into the moments."""
        found, before = self._square_ratio(parameter), self._gathered.get(parameter)
        self._gathered[parameter] = found if before is None else before + found

    def take(self, parameters: Sequence[Tensor]) -> list[float]:
        """Return the ratio of each parameter, its gradient's included, and forget it; all ranks sharing them do."""
        found = [self._square_ratio(p) for p in parameters]
        whole = [ratio + self._gathered.pop(p, 0) for p, ratio in zip(parameters, found, strict=True)]
        ratios: list[float] = sum_over_parts(torch.stack(whole), parameters).sqrt().tolist() if whole else []
        return ratios

    def forget(self) -> None:
        """Begin another step."""
        self._gathered.clear()


def mean_square_ratio(gradient: Tensor, square: Stored, step: Tensor, beta2: float, eps: float, count: int) -> Tensor:
    """Return the mean of squared gradients over the second moment that they become part of, without its bias.

    gradient  (n,); square  (n,), which is left as it is
    step      () number of updates before this one
    count     of elements that it is the mean of: more than n where others have the rest, and this is a share of it
    return    () float32; about 1 of steady gradients, 1 / (1 - beta2) of a sudden one
    """
    total = torch.zeros((), device=gradient.device)
    correction = 1 - beta2 ** (step + 1)
    for first in range(0, len(gradient), CHUNK):
        here = slice(first, first + CHUNK)
        squares = gradient[here].to(torch.float32).square()
        after = (square.read(here) * beta2).add_(squares, alpha=1 - beta2).div_(correction)
        total += (squares / after.clamp_min_(eps**2)).sum()
    return total / max(1, count)
