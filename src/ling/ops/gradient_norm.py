"""The norm of many tensors as if they were one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.precision import at_least_float32


@op(triton="ling.ops.triton.gradient_norm")
def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Add up the squares of all elements.

    tensors  of any shapes, on one device, at least one
    return   () float32, or float64 where the first is
    """
    return torch.stack([at_least_float32(x).square().sum() for x in tensors]).sum()
