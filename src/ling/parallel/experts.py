"""Experts on several ranks: a token travels once to each rank that holds some of its experts, and one row comes back.

    here       rows (N, H), each with k experts  --one copy per rank it needs-->  S rows in order of rank, then token
    all-to-all of rows, of the mixing weights (zero for experts elsewhere), of the expert ids
    there      M rows --one copy per expert--> grouped GEMMs --weighted sum per row in float32--> M rows
    all-to-all back; the sum of a token's rows, in float32 and in order of rank

Routing chooses from `topk_group` groups of neighbouring experts, so with whole groups on each rank a token travels to
`topk_group` ranks at most, however many experts it has. What an expert computes is `ops.moe.apply_experts` everywhere.
Every rank takes part in every exchange, also one that gets no row: its graph has the same exchanges in it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from ling.distributed.collectives import all_to_all_rows, exchange_counts
from ling.ops.linear import Weight
from ling.ops.moe import MixExperts, apply_experts
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
    num_pairs: int
    """Of a row and one of its experts, both here after the exchange."""


class ExpertParallel:
    """Stands in the place of `ops.moe.mix_experts` where the experts are shared out over the ranks of a group."""

    def __init__(self, group: ProcessGroup, num_experts: int) -> None:
        self.group = group
        self.experts_per_rank = num_experts // group.size()
        assert self.experts_per_rank * group.size() == num_experts, (num_experts, group.size())
        self.mix: MixExperts | None = None
        """How experts that are here multiply rows that are here, each row by one of them; None: `apply_experts`."""

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
        out = self._mix_here(rows, local_ids.long(), local_mix, _local(gate_up_proj), _local(down_proj), plan.num_pairs)
        back = all_to_all_rows(out, plan.received, plan.sent, self.group)
        return _add_up(len(x), plan.token_of_row, back)

    def plan(self, ids: Tensor) -> Dispatch:
        """Decide which of this rank's tokens go where: ids (N, k) of the chosen experts."""
        rank_of_choice = ids // self.experts_per_rank
        goes = torch.zeros(len(ids), self.group.size(), dtype=torch.bool, device=ids.device)
        goes.scatter_(1, rank_of_choice, True)
        rank_of_row, token_of_row = goes.t().nonzero().unbind(1)
        there = rank_of_choice.index_select(0, token_of_row) == rank_of_row[:, None]
        pairs = torch.zeros(self.group.size(), dtype=torch.int64, device=ids.device)
        pairs.scatter_add_(0, rank_of_choice.flatten(), torch.ones_like(rank_of_choice.flatten()))
        sent = torch.stack([goes.sum(0), pairs], 1)
        received = exchange_counts(sent, self.group)
        numbers = torch.stack([sent[:, 0], received[:, 0], received[:, 1]]).tolist()  # the only wait for the device
        return Dispatch(token_of_row, there, numbers[0], numbers[1], sum(numbers[2]))

    def _mix_here(
        self, rows: Tensor, ids: Tensor, mix: Tensor, gate_up_proj: Weight, down_proj: Weight, num_pairs: int
    ) -> Tensor:
        """Send M rows through those of their k experts that are here (id -1: elsewhere), add up: (M, H) -> (M, H)."""
        E, k = self.experts_per_rank, ids.shape[1]
        expert_of_pair = ids.flatten()
        expert_of_pair = torch.where(expert_of_pair < 0, E, expert_of_pair)
        counts = torch.zeros(E + 1, dtype=torch.int64, device=ids.device)
        counts.scatter_add_(0, expert_of_pair, torch.ones_like(expert_of_pair))
        offsets = counts[:E].cumsum(0)
        pair_of_row = expert_of_pair.argsort(stable=True)[:num_pairs]
        token_of_row = pair_of_row // k
        pairs, mix_of_pair = rows.index_select(0, token_of_row), mix.flatten().index_select(0, pair_of_row)
        if self.mix is not None:
            ids_of_pair = expert_of_pair.index_select(0, pair_of_row)[:, None]
            weighted = self.mix(pairs, ids_of_pair, mix_of_pair[:, None], counts[:E], gate_up_proj, down_proj)
            return _add_up(len(rows), token_of_row, weighted)
        out = apply_experts(pairs, gate_up_proj, down_proj, offsets.to(torch.int32))
        return _add_up(len(rows), token_of_row, out, mix_of_pair)


def _add_up(count: int, index: Tensor, rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Add rows, or rows times weights (S,), up where they belong, in float32: (S, H) -> (count, H), dtype of rows."""
    total: Tensor = _AddUp.apply(rows, weights, index, count)
    return total


class _AddUp(torch.autograd.Function):
    """Keeps rows in their own dtype, and without weights none: autograd would keep the weighted float32 ones, too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor | None, index: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(index, *(() if weights is None else (rows, weights)))
        terms = at_least_float32(rows) if weights is None else at_least_float32(rows) * weights[:, None]
        return terms.new_zeros(count, rows.shape[1]).index_add_(0, index, terms).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        index, *weighted = ctx.saved_tensors
        if not weighted:
            return gradient.index_select(0, index), None, None, None
        rows, weights = weighted
        terms = at_least_float32(gradient).index_select(0, index)
        return (terms * weights[:, None]).to(rows.dtype), (terms * rows).sum(1), None, None


def _local(weight: Weight) -> Weight:
    return weight.to_local() if isinstance(weight, DTensor) else weight
