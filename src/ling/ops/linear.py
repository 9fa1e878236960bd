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
from ling.ops.packed import PackedWeight

Weight = Tensor | Fp8BlockWeight | PackedWeight


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear map that somebody else computes, bias included: an adapter that was put around a weight.

    apply  (..., K) -> (..., M)
    """

    apply: Callable[[Tensor], Tensor]


@op(cpu="ling.ops.cpu.linear")
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
    values = weights if isinstance(weights, PackedWeight) else _values(weights, rows.dtype)
    ends = [0, *offsets.tolist()]
    parts = [rows[a:b] @ _expert(values, e, rows.dtype).T for e, (a, b) in enumerate(pairwise(ends)) if a < b]
    # Without rows: (0, M), whose gradients are there, and zero.
    return torch.cat(parts or [rows @ _expert(values, 0, rows.dtype).T])


def _values(weight: Weight, dtype: torch.dtype) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.dequantize(dtype)


def _expert(weights: Tensor | PackedWeight, index: int, dtype: torch.dtype) -> Tensor:
    """Return one expert's values; of packed weights only those that are used are ever unpacked."""
    return weights[index] if isinstance(weights, Tensor) else weights.expert(index).dequantize(dtype)
