"""Which sizes fit a network and a number of ranks, and which rank holds what.

Ranks are numbered along (replicate, shard), the last fastest. Experts are laid out along (expert_replicate,
expert_shard, expert) over the same ranks: those that share out one layer's experts are neighbours.

    dense    replicate          x  shard                       = data-parallel ranks
    experts  expert_replicate   x  expert_shard  x  expert     = the same ranks
"""

from dataclasses import dataclass
from typing import Literal

from ling.config import ModelConfig
from ling.config.parallel import AXES, ParallelConfig
from ling.errors import ConfigError

_NOT_YET = ("tensor", "context", "pipeline")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes of all axes, resolved and checked."""

    replicate: int = 1
    """Copies of the sharded model."""
    shard: int = 1
    """Ranks that parameters outside the experts are sharded over."""
    expert: int = 1
    """Ranks that a layer's experts are shared out to."""
    recompute: Literal["none", "selective", "full"] = "none"

    @property
    def world_size(self) -> int:
        return self.replicate * self.shard

    @property
    def data_size(self) -> int:
        """Ranks that read data of their own."""
        return self.replicate * self.shard

    @property
    def expert_shard(self) -> int:
        """Ranks that each of the shares of the experts is sharded over."""
        return max(1, self.shard // self.expert)

    @property
    def expert_replicate(self) -> int:
        """Copies of the experts."""
        return self.data_size // (self.expert * self.expert_shard)

    def data_rank(self, rank: int) -> int:
        """Return which share of the data a rank reads."""
        return rank

    def accumulation(self, global_batch_size: int, micro_batch_size: int) -> int:
        """Return the microbatches of one rank in a step; ConfigError if sequences do not come out even."""
        per_round = micro_batch_size * self.data_size
        if global_batch_size % per_round:
            below = global_batch_size - global_batch_size % per_round
            use = f"{below} or {below + per_round}" if below else f"{per_round}"
            raise ConfigError(
                f"train.global_batch_size {global_batch_size} is no multiple of {per_round}, train.micro_batch_size "
                f"{micro_batch_size} on {self.data_size} data-parallel ranks; use {use}"
            )
        return global_batch_size // per_round


def plan_layout(parallel: ParallelConfig, model: ModelConfig, world_size: int) -> Layout:
    """Resolve the sizes of a network's layout over `world_size` ranks.

    Raises ConfigError for sizes that do not fit each other, the network or the ranks, with those that do.
    """
    for name in _NOT_YET:
        if getattr(parallel, name) > 1:
            raise ConfigError(f"parallel.{name} {getattr(parallel, name)} is not built yet; use 1")
    sizes = _fill(parallel, world_size)
    replicate, shard = sizes["data_parallel_replicate"], sizes["data_parallel_shard"]
    valid = expert_sizes(model, replicate, shard)
    expert = parallel.expert or valid[-1]
    if expert not in valid:
        raise ConfigError(
            f"parallel.expert {expert} does not fit {_experts_of(model)} on {replicate} x {shard} data-parallel ranks; "
            f"use {_choices(valid)}"
        )
    return Layout(replicate=replicate, shard=shard, expert=expert, recompute=parallel.recompute)


def expert_sizes(model: ModelConfig, replicate: int, shard: int) -> list[int]:
    """Return the sizes of the expert axis that a network and its data-parallel ranks allow, smallest first.

    Each rank holds equally many whole experts, and whole groups, or groups whole ranks: then a token that chooses
    `topk_group` groups travels to as few ranks.
    """
    has_experts = model.num_moe_layers or model.num_nextn_predict_layers
    E, G, ranks = (model.num_experts if has_experts else 1), max(1, model.n_group), replicate * shard
    return [
        size
        for size in range(1, min(E, ranks) + 1)
        if E % size == 0
        and ranks % size == 0
        and (shard % size == 0 or size % shard == 0)
        and (G == 1 or G % size == 0 or size % G == 0)
    ]


def _fill(parallel: ParallelConfig, world_size: int) -> dict[str, int]:
    """Put what the others leave in the place of a 0."""
    sizes = {name: getattr(parallel, name) for name in AXES}
    left = next((name for name, size in sizes.items() if size == 0), None)
    given = 1
    for size in sizes.values():
        given *= size or 1
    named = " x ".join(f"parallel.{name} {size}" for name, size in sizes.items() if size > 1) or "a single rank"
    if left is not None:
        if world_size % given:
            raise ConfigError(f"{named} does not divide {world_size} ranks; use {_choices(_divisors(world_size))}")
        return sizes | {left: world_size // given}
    if given != world_size:
        raise ConfigError(
            f"{named} makes {given} ranks, but {world_size} were started; set one of the sizes to 0, which takes what "
            f"is left, or start {given}"
        )
    return sizes


def _experts_of(model: ModelConfig) -> str:
    groups = f" in {model.n_group} groups" if model.n_group > 1 else ""
    return f"{model.num_experts} experts{groups}"


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _choices(sizes: list[int]) -> str:
    *most, last = map(str, sizes)
    return f"{', '.join(most)} or {last}" if most else last
