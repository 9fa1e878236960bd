"""Weights in pieces: each tensor rank multiplies all tokens of its neighbours by its rows or columns of a matrix.

    tokens here (n, H) --gather--> (N, H) --own heads or own width--> (N, F / T) --own columns--> partial sums (N, H)
    --add up, keep own tokens--> (n, H)

Between two such products each rank has tokens of its own, as the ranks of a long context do, so norms, routers, routed
experts and their exchange know nothing of it, and their gradients are added up with everybody else's.
(Korthikanti et al., arXiv 2205.05198.)

Rows of a matrix are cut into runs of one length. For the fused projection, whose rows are all query heads, then all key
heads, then all value heads, such a run is not what one rank attends with: heads change places afterwards.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import DeviceMesh, ProcessGroup
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional

from ling.distributed.collectives import all_to_all_rows, gather_rows, sum_and_split_rows, sum_over
from ling.model.attention import Attention
from ling.model.block import Block
from ling.model.mlp import MLP
from ling.model.moe import SparseMoe
from ling.ops.attention import HeadShape


class TokenRuns:
    """The tokens that the ranks of a group share out, each a run of them.

    sizes  tokens of each rank; set before the passes of each microbatch, since packs differ

    Where no gradients are wanted, in evaluation, every rank has been given all tokens, and has them afterwards.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.sizes: list[int] = []

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) -> (N, ...)"""
        if not torch.is_grad_enabled():
            return rows
        return gather_rows(rows, self.sizes, self.group)

    def add_up(self, rows: Tensor) -> Tensor:
        """(N, ...) partial sums -> (n, ...)"""
        if not torch.is_grad_enabled():
            return sum_over([rows], self.group)[0]
        return sum_and_split_rows(rows, self.sizes, self.group)

    @property
    def here(self) -> slice:
        """This rank's tokens among all of them."""
        if not torch.is_grad_enabled():
            return slice(None)
        start = sum(self.sizes[: self.group.rank()])
        return slice(start, start + self.sizes[self.group.rank()])


def split_block(block: Block, axis: DeviceMesh, tokens: TokenRuns) -> list[nn.Module]:
    """Put this rank's pieces in the place of a block's matrices; return the modules that hold them."""
    found = _split_attention(block.attention, axis, tokens)
    mlp = block.mlp.shared_experts if isinstance(block.mlp, SparseMoe) else block.mlp
    return found if mlp is None else found + _split_mlp(mlp, axis, tokens)


def piece(whole: Tensor, axis: DeviceMesh, dim: int) -> nn.Parameter:
    """Return this rank's piece of a weight as part of the whole, by the same name and shape."""
    mine = whole.detach().chunk(axis.size(), dim)[axis.get_local_rank()].clone()
    return nn.Parameter(DTensor.from_local(mine, axis, [Shard(dim)], run_check=False), whole.requires_grad)


def held(weight: Tensor) -> Tensor:
    """Return the piece of a weight that is here; gradients pass."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


class RowsOfMatrix(nn.Module):
    """All tokens times a run of a matrix's rows: (n, K) -> (N, M / T)."""

    def __init__(self, linear: nn.Linear, axis: DeviceMesh, gather: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = piece(linear.weight, axis, 0)
        self.bias = None if linear.bias is None else piece(linear.bias, axis, 0)
        self.gather = gather

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.gather(x), held(self.weight), None if self.bias is None else held(self.bias))


class ColumnsOfMatrix(nn.Module):
    """All tokens times a run of a matrix's columns, added up over the ranks: (N, K / T) -> (n, M)."""

    def __init__(self, linear: nn.Linear, axis: DeviceMesh, tokens: TokenRuns) -> None:
        super().__init__()
        self.weight = piece(linear.weight, axis, 1)
        self.bias = None if linear.bias is None else piece(linear.bias, axis, 0)
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        partial = functional.linear(x, held(self.weight))
        if self.bias is not None:  # each rank adds its part, so that the sum has all of it once
            part, me = held(self.bias), self.tokens.group.rank()
            partial = partial + functional.pad(part, (me * len(part), partial.shape[1] - (me + 1) * len(part)))
        return self.tokens.add_up(partial)


class HeadsOfProjection(RowsOfMatrix):
    """The fused query-key-value projection: (n, H) -> (N, (A + 2K) / T * D), this rank's queries, keys, values."""

    def __init__(self, linear: nn.Linear, axis: DeviceMesh, tokens: TokenRuns, heads: HeadShape) -> None:
        super().__init__(linear, axis, tokens.gather)
        self.group = tokens.group
        self.route = route_heads(heads, tokens.group.size(), tokens.group.rank())

    def forward(self, x: Tensor) -> Tensor:
        mine = super().forward(x)
        N, per_rank = len(mine), sum(self.route.sent)
        heads = mine.view(N, per_rank, -1).transpose(0, 1)  # (heads, N, D)
        sent = torch.cat([heads[run] for run in self.route.order])
        kept = all_to_all_rows(sent, self.route.sent, self.route.received, self.group)
        return kept.transpose(0, 1).reshape(N, -1)


class HeadRoute(NamedTuple):
    """How heads change places after the fused projection."""

    order: list[slice]
    """Runs of the heads computed here, in order of the rank that attends with them."""
    sent: list[int]
    """Heads for each rank."""
    received: list[int]
    """Heads from each rank; in order of rank they are this one's queries, keys and values."""


def route_heads(heads: HeadShape, ranks: int, rank: int) -> HeadRoute:
    """Decide which heads one of `ranks` ranks sends where: it computes a run of the fused A + 2K."""
    A, K = heads.A // ranks, heads.K // ranks
    total = heads.A + 2 * heads.K

    def wanted(by: int) -> list[int]:
        firsts = ((by * A, A), (heads.A + by * K, K), (heads.A + heads.K + by * K, K))
        return [first + i for first, count in firsts for i in range(count)]

    def computed(by: int, among: list[int]) -> list[int]:
        run = range(by * total // ranks, (by + 1) * total // ranks)
        return [head for head in among if head in run]

    for_each = [computed(rank, wanted(by)) for by in range(ranks)]
    order = [head - rank * total // ranks for those in for_each for head in those]
    starts = [i for i, head in enumerate(order) if i == 0 or head != order[i - 1] + 1]
    runs = [slice(order[a], order[b - 1] + 1) for a, b in pairwise([*starts, len(order)])]
    return HeadRoute(runs, list(map(len, for_each)), [len(computed(by, wanted(rank))) for by in range(ranks)])


class _GatheredForTwo:
    """Gathers rows for two products with the same rows in turn: the second gets what the first did."""

    def __init__(self, tokens: TokenRuns) -> None:
        self.tokens = tokens
        self.kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        if self.kept is not None and self.kept[0] is rows:
            gathered, self.kept = self.kept[1], None
            return gathered
        gathered = self.tokens.gather(rows)
        self.kept = rows, gathered
        return gathered


def _split_attention(attention: Attention, axis: DeviceMesh, tokens: TokenRuns) -> list[nn.Module]:
    heads, T = attention.heads, axis.size()
    parts = {
        "query_key_value": HeadsOfProjection(attention.query_key_value, axis, tokens, heads),
        "dense": ColumnsOfMatrix(attention.dense, axis, tokens),
    }
    attention.heads = heads._replace(A=heads.A // T, K=heads.K // T)
    return _put(attention, parts)


def _split_mlp(mlp: MLP, axis: DeviceMesh, tokens: TokenRuns) -> list[nn.Module]:
    gather = _GatheredForTwo(tokens)
    parts = {
        "gate_proj": RowsOfMatrix(mlp.gate_proj, axis, gather),
        "up_proj": RowsOfMatrix(mlp.up_proj, axis, gather),
        "down_proj": ColumnsOfMatrix(mlp.down_proj, axis, tokens),
    }
    return _put(mlp, parts)


def _put(owner: nn.Module, parts: dict[str, nn.Module]) -> list[nn.Module]:
    for name, part in parts.items():
        setattr(owner, name, part)
    return list(parts.values())
