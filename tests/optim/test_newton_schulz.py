"""Newton-Schulz against one matrix at a time, and what makes its result useful."""

import pytest
import torch
from torch import Tensor

from ling.optim.newton_schulz import orthogonalize
from ling.testing.tolerances import SUM_ORDER, assert_close


def one_by_one(x: Tensor, iterations: int) -> Tensor:
    """The iteration as it is published, for a single matrix in float64."""
    y = x.double()
    y = y / y.pow(2).sum().sqrt()
    for _ in range(iterations):
        s = y @ y.T if y.shape[0] <= y.shape[1] else y.T @ y
        p = -4.7750 * s + 2.0315 * s @ s
        y = 3.4445 * y + (p @ y if y.shape[0] <= y.shape[1] else y @ p)
    return y


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (2, 2, 16, 16), (5, 7), (1, 1, 6), (0, 4, 4)])
def test_a_stack_gives_what_each_matrix_gives_on_its_own(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    got = orthogonalize(x)
    assert got.shape == x.shape
    for one, matrix in zip(got.reshape(-1, *shape[-2:]), x.reshape(-1, *shape[-2:]), strict=True):
        assert_close(one, one_by_one(matrix, 5), SUM_ORDER)


@pytest.mark.parametrize("shape", [(64, 160), (160, 64), (96, 96)])
def test_singular_values_end_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    u, s, v = torch.linalg.svd(random(*shape).double(), full_matrices=False)
    x = (u * s.clamp_min(0.05 * s.max())) @ v  # 5 iterations reach what is not much smaller than the largest
    got = orthogonalize(x.float(), 5).double()
    values = torch.linalg.svdvals(got)
    assert values.min() > 0.65, values.min()
    assert values.max() < 1.25, values.max()
    turned = u.T @ got @ v.T
    off_diagonal = turned - torch.diag(turned.diagonal())
    assert off_diagonal.abs().max() < 1e-4


def test_zeros_stay_zeros_and_size_does_not_matter() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
    x = random(2, 12, 9)
    assert_close(orthogonalize(1e3 * x), orthogonalize(x), SUM_ORDER)


def test_bfloat16_iterations_are_near() -> None:
    x = random(4, 32, 48)
    got = orthogonalize(x, 5, torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert (got.float() - orthogonalize(x)).abs().max() < 0.03
