"""The kernel of cross-entropy."""

import pytest
import torch
from tests.ops.kernels.comparing import draw, tolerance

from ling.ops.backend import use_backend
from ling.ops.cross_entropy import IGNORE, linear_cross_entropy
from ling.ops.triton import cross_entropy
from ling.testing.tolerances import assert_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [9, 5000])
def test_loss_and_gradients_agree_with_the_reference(V: int, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(cross_entropy, "_MIN_ROWS", 2)  # three chunks, the last of them short
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS", 2 * V)
    labels = torch.tensor([1, IGNORE, 0, 8, 3])
    results = []
    for backend, compute in (("triton", dtype), ("reference", torch.float32)):
        hidden = draw(0, 5, 8, dtype=dtype).to(compute).requires_grad_()
        weight = draw(1, V, 8, dtype=dtype).to(compute).requires_grad_()
        with use_backend(backend):
            found = linear_cross_entropy(hidden, weight, labels)
        results.append((found, torch.autograd.grad(found.total * 0.5, [hidden, weight])))
    (got, gradients), (expected, wanted) = results
    assert_close(got.per_token, expected.per_token, tolerance(dtype))
    assert_close(got.total, expected.total, tolerance(dtype))
    assert got.per_token[1] == 0
    assert not got.correct[1]
    for a, b in zip(gradients, wanted, strict=True):
        assert a.dtype == dtype
        assert_close(a, b, tolerance(dtype))


def test_a_row_is_correct_where_no_token_is_likelier_than_its_label() -> None:
    hidden, weight = torch.tensor([[2.0], [2.0], [-1.0]]), torch.tensor([[1.0], [1.0], [0.5]])
    with use_backend("triton"), torch.no_grad():
        found = linear_cross_entropy(hidden, weight, torch.tensor([1, 2, 2]))
    assert found.correct.tolist() == [True, False, True]
