"""Choose experts by `topk` over keys that cannot tie.

A float32 score becomes an integer that orders the same way, with the expert's index packed below it, so equal
scores are told apart and the lowest index wins, as in the reference, at a third of a full sort's cost.
"""

import torch
from torch import Tensor

from ling.ops.router import RouterRule


def why_not(scores: Tensor, rule: RouterRule) -> str | None:
    return None if scores.dtype == torch.float32 else "keys are made from float32 scores"


def forward(scores: Tensor, rule: RouterRule) -> Tensor:
    N, E = scores.shape
    keys = _ordered_keys(scores)
    if rule.n_group > 1:
        grouped = scores.view(N, rule.n_group, E // rule.n_group)
        group_keys = _ordered_keys(grouped.topk(2, dim=2).values.sum(2))
        kept = group_keys >= group_keys.topk(rule.topk_group, dim=1).values[:, -1:]
        lowest = torch.iinfo(torch.int64).min
        keys = keys.view(N, rule.n_group, -1).masked_fill(~kept[..., None], lowest).view(N, E)
    return keys.topk(rule.num_experts_per_tok, dim=1).indices


def _ordered_keys(scores: Tensor) -> Tensor:
    """Map float32 (N, E) to distinct int64 in the same order; of equals, the lower index is the larger."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0, which compares equal to it
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # two's complement: negative floats order backwards
    E = scores.shape[1]
    return ordered.to(torch.int64) * E + torch.arange(E - 1, -1, -1, device=scores.device)
