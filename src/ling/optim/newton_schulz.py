"""The nearest matrix with equal singular values, without a decomposition: the heart of Muon.

A quintic in Y Y^T pushes every singular value of Y / |Y| towards 1. Its coefficients are chosen for speed, not to
converge: after 5 iterations singular values lie between about 0.7 and 1.2 (K. Jordan et al., Muon, 2024).
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_TINY = 1e-7
"""Added to norms: a matrix of zeros stays one, and one next to nothing is not blown up."""


def orthogonalize(x: Tensor, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return matrices with the singular vectors of `x` and singular values near 1.

    x       (..., M, K)  a matrix, or any number of them, each on its own
    dtype   of the iterations; norms are taken in float32 at least
    return  (..., M, K)  dtype
    """
    a, b, c = COEFFICIENTS
    stack = x.reshape(-1, *x.shape[-2:])
    if x.shape[-2] > x.shape[-1]:
        stack = stack.mT  # the Gram matrix is as wide as the shorter side
    norm = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    y = (stack / (norm + _TINY)).to(dtype)
    for _ in range(iterations):
        gram = torch.bmm(y, y.mT)
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if x.shape[-2] > x.shape[-1] else y).reshape(x.shape)


def num_temporary_bytes(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Return the most that `orthogonalize` holds for one float32 matrix, its result included."""
    short, item = min(rows, columns), dtype.itemsize
    starting = rows * columns * (4 + item * (dtype != torch.float32))
    iterating = (2 * rows * columns + 2 * short * short) * item
    return max(starting, iterating)
