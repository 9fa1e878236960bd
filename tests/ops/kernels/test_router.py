"""The router's kernel."""

import pytest
import torch
from tests.ops.kernels.comparing import KERNEL_32, draw, tolerance
from torch import Tensor

from ling.ops.backend import use_backend
from ling.ops.router import RouterRule, Routing, route
from ling.ops.triton import router
from ling.testing.tolerances import assert_close

RULES = {
    "published": RouterRule(4, 4, 2, 2.5),
    "no groups": RouterRule(3, 1, 1, 1.0),
    "one expert": RouterRule(1, 0, 0, 2.0),
}


def compare(got: Routing, expected: Routing) -> None:
    assert torch.equal(got.ids, expected.ids)
    assert torch.equal(got.counts, expected.counts)
    assert_close(got.logits, expected.logits, KERNEL_32, "logits")
    assert_close(got.weights, expected.weights, KERNEL_32, "weights")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
    ids=["32-32", "16-32", "16-16"],
)
def test_routing_and_its_gradients_agree_with_the_reference(
    dtype: torch.dtype, weight_dtype: torch.dtype, rule: RouterRule
) -> None:
    N, H, E = 21, 40, 16
    bias = draw(2, E, scale=0.3)
    results = []
    for backend in ("triton", "reference"):
        x = draw(0, N, H, dtype=dtype).requires_grad_()
        weight = draw(1, E, H, dtype=weight_dtype, scale=0.2).requires_grad_()
        with use_backend(backend):
            routing = route(x, weight, bias, rule)
        loss = (routing.weights * draw(3, *routing.weights.shape)).sum() + routing.logits.logsumexp(1).square().mean()
        results.append((routing, torch.autograd.grad(loss, [x, weight])))
    (got, gradients), (expected, wanted) = results
    compare(got, expected)
    for a, b in zip(gradients, wanted, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, tolerance(a.dtype))


@pytest.mark.parametrize("rule", [*RULES.values(), RouterRule(2, 8, 4, 2.5)], ids=[*RULES, "groups of two"])
def test_the_lowest_index_wins_ties_of_experts_and_of_groups(rule: RouterRule) -> None:
    """A unit weight hands scores through, of which half a dozen values stand for 16 experts."""
    logits = (draw(0, 50, 16) * 1.5).round() + 0.25  # of -a and a the sigmoids add up to 1, or nearly
    bias = torch.tensor([0.0, -1.5]).repeat(8)  # also below zero, where masked experts must not win
    with use_backend("triton"):
        got = route(logits, torch.eye(16), bias, rule)
    with use_backend("reference"):
        compare(got, route(logits, torch.eye(16), bias, rule))


def test_without_gradients_it_routes_the_same() -> None:
    x, weight = draw(0, 5, 40).requires_grad_(), draw(1, 16, 40)
    with use_backend("triton"):
        expected = route(x, weight, None, RULES["published"])
        with torch.no_grad():
            compare(route(x, weight, None, RULES["published"]), expected)


def test_what_it_cannot_route_it_says() -> None:
    x: Tensor = draw(0, 2, 8)
    assert "power of two" in (router.why_not(x, draw(1, 24, 8), None, RULES["published"]) or "")
    assert "fewer experts" in (router.why_not(x, draw(1, 16, 8), None, RouterRule(8, 8, 2, 1.0)) or "")
    assert "does not meet" in (router.why_not(x, draw(1, 16, 8, dtype=torch.bfloat16), None, RULES["published"]) or "")
