"""Group-limited sigmoid routing without an auxiliary loss (spec: model.md 4.4; arXiv 2408.15664)."""

from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.precision import at_least_float32


class Routing(NamedTuple):
    """Where N tokens go, and what the balance and the z-loss are computed from."""

    logits: Tensor
    """(N, E) float32, before the sigmoid."""
    ids: Tensor
    """(N, k) int64, chosen experts, best first."""
    weights: Tensor
    """(N, k) float32, what their outputs are multiplied by."""
    counts: Tensor
    """(E,) int64, tokens per expert: an output, never written inside a layer (recompute would count twice)."""


class RouterRule(NamedTuple):
    """How experts are chosen; field names as in the published configuration."""

    num_experts_per_tok: int
    n_group: int
    topk_group: int
    routed_scaling_factor: float


@op(triton="ling.ops.triton.router")
def route(x: Tensor, weight: Tensor, expert_bias: Tensor | None, rule: RouterRule) -> Routing:
    """Score every expert in float32 and choose k per token.

    x            (N, H)
    weight       (E, H), widened where it is bfloat16
    expert_bias  (E,) float32 or None: steers the choice and never enters the mixing weights
    """
    logits = torch.nn.functional.linear(at_least_float32(x), at_least_float32(weight))
    scores = torch.sigmoid(logits)
    with torch.no_grad():
        biased = scores if expert_bias is None else scores + expert_bias
        ids = choose_experts(biased, rule)
    chosen = scores.gather(1, ids)
    if rule.num_experts_per_tok > 1:
        chosen = chosen / (chosen.sum(1, keepdim=True) + 1e-20)
    return Routing(logits, ids, chosen * rule.routed_scaling_factor, count_experts(ids, scores.shape[1]))


@op(torch="ling.ops.torch.router")
def choose_experts(scores: Tensor, rule: RouterRule) -> Tensor:
    """Choose the k best experts of the best groups; the lowest index wins ties.

    scores  (N, E)  biased scores
    return  (N, k)  int64, best first

    A group's score is the sum of its two best. Experts of other groups are masked with -inf, so that they lose
    against negative scores too. The sort is stable because `topk` promises no order among equals.
    """
    N, E = scores.shape
    if rule.n_group > 1:
        grouped = scores.view(N, rule.n_group, E // rule.n_group)
        group_scores = grouped.sort(dim=2, descending=True).values[..., :2].sum(2)
        groups = group_scores.sort(dim=1, descending=True, stable=True).indices[:, : rule.topk_group]
        kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, groups, True)
        scores = grouped.masked_fill(~kept[..., None], -torch.inf).view(N, E)
    return scores.sort(dim=1, descending=True, stable=True).indices[:, : rule.num_experts_per_tok]


def count_experts(ids: Tensor, num_experts: int) -> Tensor:
    """Count the tokens of each expert: (E,) int64."""
    flat = ids.flatten()
    counts = torch.zeros(num_experts, dtype=torch.int64, device=ids.device)
    return counts.scatter_add_(0, flat, torch.ones_like(flat))
