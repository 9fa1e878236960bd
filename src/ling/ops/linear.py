"""Where weights meet activations: one matrix, or one per expert.

Every product with a weight goes through these two functions, so a weight may be a tensor or quantised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.fp8 import Fp8BlockWeight

Weight = Tensor | Fp8BlockWeight


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear map that somebody else computes, bias included: an adapter that was put around a weight.

    apply  (..., K) -> (..., M)
    """

    apply: Callable[[Tensor], Tensor]


def linear(x: Tensor, weight: Weight | Projection, bias: Tensor | None = None) -> Tensor:
    """Multiply rows by a weight.

    x       (..., K)
    weight  (M, K)  dtype of x, or quantised
    bias    (M,) or None
    return  (..., M)  dtype of x
    """
    if isinstance(weight, Projection):
        return weight.apply(x)
    return torch.nn.functional.linear(x, _values(weight, x.dtype), bias)


@op(torch="ling.ops.torch.linear")
def grouped_linear(rows: Tensor, weights: Weight, offsets: Tensor) -> Tensor:
    """Multiply each group of rows by the weight of its expert.

    rows     (R, K)  sorted by expert
    weights  (E, M, K)  dtype of rows, or quantised
    offsets  (E,)  int32; expert e has rows offsets[e - 1] up to offsets[e]; offsets[-1] == R
    return   (R, M)
    """
    values = _values(weights, rows.dtype)
    ends = [0, *offsets.tolist()]
    parts = [rows[a:b] @ values[e].T for e, (a, b) in enumerate(pairwise(ends)) if a < b]
    return torch.cat(parts or [rows @ values[0].T])  # without rows: (0, M), whose gradients are there, and zero


def _values(weight: Weight, dtype: torch.dtype) -> Tensor:
    return weight.dequantize(dtype) if isinstance(weight, Fp8BlockWeight) else weight
