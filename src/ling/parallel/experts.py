"""Experts on several ranks: a token travels once to each rank that holds some of its experts, and one row comes back.

    here       rows (N, H), each with k experts  --one copy per rank it needs-->  S rows in order of rank, then token
    all-to-all of rows, of the mixing weights (zero for experts elsewhere), of the expert ids
    there      M rows --one copy per expert--> grouped GEMMs --weighted sum per row in float32--> M rows
    all-to-all back; the sum of a token's rows, in float32 and in order of rank

Routing chooses from `topk_group` groups of neighbouring experts, so with whole groups on each rank a token travels to
`topk_group` ranks at most, however many experts it has. What an expert computes is `ops.moe.apply_experts` everywhere.
Every rank takes part in every exchange, also one that gets no row: its graph has the same exchanges in it.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from ling.distributed.collectives import all_to_all_rows, exchange_counts
from ling.ops.linear import Weight
from ling.ops.moe import apply_experts
from ling.ops.precision import at_least_float32


class Dispatch(NamedTuple):
    """Which rows go where: S copies sent from here, M received."""

    token_of_row: Tensor
    """(S,) int64, ascending among those for one rank."""
    choice_is_there: Tensor
    """(S, k) bool, which of the token's experts the rank it goes to holds."""
    sent: list[int]
    """(W,) rows for each rank."""
    received: list[int]
    """(W,) rows from each rank."""


class ExpertParallel:
    """Stands in the place of `ops.moe.mix_experts` where the experts are shared out over the ranks of a group."""

    def __init__(self, group: ProcessGroup, num_experts: int) -> None:
        self.group = group
        self.experts_per_rank = num_experts // group.size()
        assert self.experts_per_rank * group.size() == num_experts, (num_experts, group.size())

    def __call__(
        self, x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Weight, down_proj: Weight
    ) -> Tensor:
        """As `mix_experts`, with this rank's tokens and all ranks' experts: (N, H) -> (N, H).

        gate_up_proj, down_proj  this rank's experts, (E / W, 2F, H) and (E / W, H, F)
        """
        plan = self.plan(ids)
        there = plan.choice_is_there
        rows = x.index_select(0, plan.token_of_row)
        local_ids = torch.where(there, ids.index_select(0, plan.token_of_row) % self.experts_per_rank, -1)
        local_mix = mix.index_select(0, plan.token_of_row) * there
        rows, local_mix, local_ids = (
            all_to_all_rows(t, plan.sent, plan.received, self.group) for t in (rows, local_mix, local_ids.int())
        )
        out = self._mix_here(rows, local_ids.long(), local_mix, _local(gate_up_proj), _local(down_proj))
        back = all_to_all_rows(out, plan.received, plan.sent, self.group)
        return _sum_into(len(x), plan.token_of_row, at_least_float32(back)).to(x.dtype)

    def plan(self, ids: Tensor) -> Dispatch:
        """Decide which of this rank's tokens go where: ids (N, k) of the chosen experts."""
        rank_of_choice = ids // self.experts_per_rank
        goes = torch.zeros(len(ids), self.group.size(), dtype=torch.bool, device=ids.device)
        goes.scatter_(1, rank_of_choice, True)
        rank_of_row, token_of_row = goes.t().nonzero().unbind(1)
        sent = goes.sum(0)
        received = exchange_counts(sent, self.group)
        there = rank_of_choice.index_select(0, token_of_row) == rank_of_row[:, None]
        return Dispatch(token_of_row, there, *torch.stack([sent, received]).tolist())

    def _mix_here(self, rows: Tensor, ids: Tensor, mix: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
        """Send M rows through those of their k experts that are here (id -1: elsewhere), add up: (M, H) -> (M, H)."""
        E, k = self.experts_per_rank, ids.shape[1]
        expert_of_pair = ids.flatten()
        expert_of_pair = torch.where(expert_of_pair < 0, E, expert_of_pair)
        counts = torch.zeros(E + 1, dtype=torch.int64, device=ids.device)
        counts.scatter_add_(0, expert_of_pair, torch.ones_like(expert_of_pair))
        offsets = counts[:E].cumsum(0)
        pair_of_row = expert_of_pair.argsort(stable=True)[: int(offsets[-1])]
        token_of_row = pair_of_row // k
        out = apply_experts(rows.index_select(0, token_of_row), gate_up_proj, down_proj, offsets.to(torch.int32))
        weighted = at_least_float32(out) * mix.flatten().index_select(0, pair_of_row)[:, None]
        return _sum_into(len(rows), token_of_row, weighted).to(rows.dtype)


def _sum_into(count: int, index: Tensor, rows: Tensor) -> Tensor:
    """Add rows up where they belong, one after the other: (S, H) -> (count, H)."""
    return rows.new_zeros(count, rows.shape[1]).index_add(0, index, rows)


def _local(weight: Weight) -> Weight:
    return weight.to_local() if isinstance(weight, DTensor) else weight
