"""One AdamW update of a parameter in whatever it and its moments are kept in."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ling.ops.adamw import AdamWRule, Moment
from ling.ops.backend import op
from ling.optim.stored import CHUNK, InPlace, Noise, RoundedWeight, Stored, as_stored


@op(triton="ling.ops.triton.adamw")
def adamw_(
    weight: Tensor, gradient: Tensor, mean: Moment, square: Moment, step: Tensor, key: int, rule: AdamWRule,
    offset: int = 0,
) -> None:  # fmt: skip
    """Update weight and moments in place, piece by piece: nothing is in float32 as a whole.

    weight, gradient  (n,) bfloat16 or float32
    step              () float32, the number of updates before this one; it is not changed
    key               of the noise; an element's position is its index in `weight`, plus
    offset            the elements of the whole parameter before those at hand
    """
    noise = Noise(key, weight.device, offset)
    weights: Stored = InPlace(weight)
    if weight.dtype != torch.float32:
        weights = RoundedWeight(weight, noise if rule.stochastic else None)
    kept = [weights, as_stored(mean, "mean", noise), as_stored(square, "square", noise)]
    for first in range(0, len(weight), CHUNK):
        here = slice(first, first + CHUNK)
        values = [stored.read(here) for stored in kept]
        w, m, v = values
        adamw(
            [w], [gradient[here].to(torch.float32)], [m], [v], [], [step.clone()],
            fused=True, amsgrad=False, maximize=False, lr=rule.lr, weight_decay=rule.weight_decay,
            beta1=rule.beta1, beta2=rule.beta2, eps=rule.eps,
        )  # fmt: skip
        for stored, changed in zip(kept, values, strict=True):
            stored.write(here, changed)
