"""Cross-entropy of a linear head: the loss without its logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.linear import linear
from ling.ops.precision import at_least_float32

IGNORE = -100
"""Label of a slot that predicts nothing."""


class CrossEntropy(NamedTuple):
    """Losses of N slots in nats."""

    total: Tensor
    """() float32, sum over slots whose label counts; the differentiable one."""
    per_token: Tensor
    """(N,) float32, detached; 0 where the label is IGNORE."""
    correct: Tensor
    """(N,) bool, whether no token is more likely than the label; False where it is IGNORE."""


@op(triton="ling.ops.triton.cross_entropy", torch="ling.ops.torch.cross_entropy")
def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> CrossEntropy:
    """Score each row's next token under `softmax(hidden @ weight.T)`.

    hidden  (N, H)
    weight  (V, H)
    labels  (N,) int64, IGNORE where nothing is predicted
    The torch twin, which runs by default, works in chunks of rows and never holds N x V logits.
    """
    logits = at_least_float32(linear(hidden, weight))
    per_token = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    counted = labels != IGNORE
    target = logits.gather(1, labels.where(counted, 0)[:, None]).squeeze(1)
    correct = (target >= logits.amax(1)) & counted
    return CrossEntropy(per_token.sum(), per_token.detach(), correct)
