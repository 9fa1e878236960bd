"""Routing: the published example, ties, groups, and the twin that never sorts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ling.ops.backend import use_backend
from ling.ops.router import RouterRule, choose_experts, route


def test_the_worked_example_of_the_specification() -> None:
    """spec model.md 11: a bias lifts expert 3 into the choice but not into its weight, and drops expert 8."""
    logits = torch.tensor([[2, -1, 0.5, 0, 1, 1, -2, 0.3, 3, -3, -3, -3, 0.9, 0.8, 0.7, 0.6]])
    bias = torch.zeros(16)
    bias[3], bias[8] = 0.2, -0.6
    rule = RouterRule(num_experts_per_tok=4, n_group=4, topk_group=2, routed_scaling_factor=2.5)
    routing = route(logits, torch.eye(16), bias, rule)
    weights = dict(zip(routing.ids[0].tolist(), routing.weights[0].tolist(), strict=True))
    assert weights == pytest.approx({0: 0.7745547, 4: 0.6428778, 5: 0.6428778, 3: 0.4396897}, abs=1e-6)
    assert routing.ids[0].tolist() == [0, 4, 5, 3]
    assert routing.counts.tolist() == [1, 0, 0, 1, 1, 1, *[0] * 10]


def test_the_weight_of_a_single_expert_is_not_normalised() -> None:
    rule = RouterRule(num_experts_per_tok=1, n_group=0, topk_group=0, routed_scaling_factor=2.0)
    routing = route(torch.tensor([[0.0, 1.0]]), torch.eye(2), None, rule)
    assert routing.weights.item() == pytest.approx(2 * torch.tensor(1.0).sigmoid().item())


def test_experts_of_other_groups_lose_against_negative_scores() -> None:
    scores = torch.tensor([[-3.0, -4.0, -1.0, -9.0]])
    rule = RouterRule(num_experts_per_tok=2, n_group=2, topk_group=1, routed_scaling_factor=1.0)
    assert choose_experts(scores, rule).tolist() == [[0, 1]]  # sums -7 and -10: the first group, whatever is in it


def test_without_groups_the_best_experts_of_all_are_taken() -> None:
    rule = RouterRule(num_experts_per_tok=2, n_group=0, topk_group=0, routed_scaling_factor=1.0)
    assert choose_experts(torch.tensor([[0.1, 0.9, 0.3, 0.8]]), rule).tolist() == [[1, 3]]


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(
        st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1e-38, 0.25, 0.5, 1.0, 1.5]), min_size=16, max_size=16),
        min_size=1,
        max_size=6,
    ),
    groups=st.sampled_from([(0, 0), (1, 1), (2, 1), (4, 2), (8, 4)]),
    k=st.integers(1, 4),
)
def test_back_ends_choose_the_same_experts_in_the_same_order_among_ties(scores, groups, k) -> None:
    rule = RouterRule(k, *groups, routed_scaling_factor=1.0)
    table = torch.tensor(scores)
    with use_backend("reference"):
        expected = choose_experts(table, rule)
    with use_backend("torch"):
        got = choose_experts(table, rule)
    assert torch.equal(got, expected)
