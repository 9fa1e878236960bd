"""The chunked loss: right, and without the logits it is made of."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ling.ops.backend import use_backend
from ling.ops.cross_entropy import IGNORE, linear_cross_entropy
from ling.testing.tolerances import SUM_ORDER, assert_close


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements any operation gave."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.numel())
        return out


def inputs(N: int, H: int, V: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator).requires_grad_()
    weight = torch.randn(V, H, generator=generator).requires_grad_()
    labels = torch.randint(V, (N,), generator=generator)
    labels[::3] = IGNORE
    return hidden, weight, labels


def test_several_chunks_give_the_loss_and_gradients_of_one() -> None:
    hidden, weight, labels = inputs(300, 8, 40000)  # chunks of 64 rows
    results = []
    for backend in ("reference", "torch"):
        with use_backend(backend):
            ce = linear_cross_entropy(hidden, weight, labels)
        results.append((ce, torch.autograd.grad(ce.total / 200, [hidden, weight])))
    (expected, expected_grads), (got, got_grads) = results
    for name in ("total", "per_token"):
        assert_close(getattr(got, name), getattr(expected, name), SUM_ORDER, name)
    assert torch.equal(got.correct, expected.correct)
    for g, e in zip(got_grads, expected_grads, strict=True):
        assert_close(g, e, SUM_ORDER, "gradient")


def test_no_tensor_of_logits_is_ever_held() -> None:
    N, V = 512, 50000
    hidden, weight, labels = inputs(N, 8, V)
    with LargestTensor() as seen:
        linear_cross_entropy(hidden, weight, labels).total.backward()
    assert 0 < seen.largest <= 64 * V < N * V / 4


def test_slots_without_a_label_count_for_nothing() -> None:
    hidden, weight, labels = inputs(6, 8, 11)
    ce = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORE))
    ce.total.backward()
    assert ce.total.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0
    assert not ce.correct.any()
