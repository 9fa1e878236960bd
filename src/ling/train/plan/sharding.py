"""A layout as a simulation builds it: as a real run does, but for where rows go, which depends on values it has not."""

from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ling.config import ModelConfig
from ling.model import CausalLM
from ling.parallel.context import even_split
from ling.parallel.experts import Dispatch, ExpertParallel
from ling.parallel.ranks import Ranks
from ling.parallel.shard import parallelize, policy_of
from ling.scaling.activations import rank_visits
from ling.scaling.layout import Layout
from ling.scaling.precision import Precision


def lay_out(model: CausalLM, layout: Layout, precision: Precision) -> Ranks:
    """Lay `model` out in place over the process group at hand."""
    ranks = Ranks(layout)
    if layout.gpus > 1 or precision.parameter != precision.compute_bytes:
        exchange = partial(BalancedExperts, model=model.config)
        parallelize(model, ranks, policy_of(precision.compute), exchange)
    elif layout.recompute == "selective":
        raise AssertionError("one process of one precision is not laid out")
    return ranks


class BalancedExperts(ExpertParallel):
    """The exchange under balance: every token goes to as many ranks as it can, and every rank gets as much."""

    def __init__(self, group: ProcessGroup, num_experts: int, model: ModelConfig) -> None:
        super().__init__(group, num_experts)
        self._visits = rank_visits(model, group.size())

    def plan(self, ids: Tensor) -> Dispatch:
        (N, k), W = ids.shape, self.group.size()
        each = even_split(N * self._visits, W)
        token_of_row = torch.zeros(sum(each), dtype=torch.int64, device=ids.device)
        there = torch.zeros(sum(each), k, dtype=torch.bool, device=ids.device)
        return Dispatch(token_of_row, there, each, [each[self.group.rank()]] * W, N * k)
