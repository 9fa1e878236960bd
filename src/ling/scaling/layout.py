"""How a model is divided over ranks: the sizes that fit a network, and what each rank holds.

Ranks are numbered along (pipeline, data_parallel_replicate, data_parallel_shard, context, tensor), the last fastest.
Weights are sharded over `data_parallel_shard x context x tensor` ranks; the expert axis lies inside these, its ranks
neighbours, so experts are first split over `expert` ranks and what is left is sharded over the rest.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Literal

from ling.config import ModelConfig
from ling.config.fields import check_fields
from ling.config.parallel import AXES, ParallelConfig
from ling.errors import ConfigError

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes of the axes, and what is computed twice instead of kept."""

    data_parallel_shard: int = 1
    """Ranks that share out weights, gradients and moments among them; each reads its own data."""
    data_parallel_replicate: int = 1
    """Copies of such a set of ranks."""
    expert: int = 1
    """Ranks that share out the routed experts; lies inside data_parallel_shard x context x tensor."""
    tensor: int = 1
    """Ranks that share out heads, feed-forward widths and the vocabulary."""
    context: int = 1
    """Ranks that share out the tokens of a sequence."""
    pipeline: int = 1
    """Stages that share out the layers."""
    recompute: Recompute = "none"
    """What is computed again in backward. selective: routed experts; full: the whole block."""

    def __post_init__(self) -> None:
        check_fields(self, "parallel")
        for name, size in self.axes():
            if size < 1:
                raise ConfigError(f"parallel.{name} must be at least 1, got {size}")

    def axes(self) -> Iterator[tuple[str, int]]:
        """Yield name and size of each axis."""
        for field in fields(self):
            if field.name != "recompute":
                yield field.name, getattr(self, field.name)

    @property
    def gpus(self) -> int:
        return self.data_parallel * self.context * self.tensor * self.pipeline

    @property
    def data_parallel(self) -> int:
        """Ranks that read different sequences."""
        return self.data_parallel_replicate * self.data_parallel_shard

    @property
    def stage_ranks(self) -> int:
        """Ranks that hold the same layers."""
        return self.gpus // self.pipeline

    def data_rank(self, rank: int) -> int:
        """Return which share of the data a rank reads, of `data_parallel`."""
        return rank % self.stage_ranks // (self.context * self.tensor)

    @property
    def token_ranks(self) -> int:
        """Ranks of one copy of the model's layers, each with tokens of its own: what weights are sharded over."""
        return self.weight_shards * self.tensor

    @property
    def weight_shards(self) -> int:
        """Ranks that a tensor rank's part of a weight is sharded over."""
        return self.data_parallel_shard * self.context

    @property
    def expert_shards(self) -> int:
        """Ranks that an expert's weight is sharded over, once `expert` ranks have split the stack."""
        return self.token_ranks // self.expert

    def __str__(self) -> str:
        short = {
            "data_parallel_shard": "shard", "data_parallel_replicate": "replicate", "expert": "expert",
            "tensor": "tensor", "context": "context", "pipeline": "pipeline",
        }  # fmt: skip
        named = [f"{short[name]} {size}" for name, size in self.axes() if size > 1]
        return ", ".join(named) or "one process"


def plan_layout(parallel: ParallelConfig, model: ModelConfig, ranks: int, sequence_length: int) -> Layout:
    """Resolve the sizes that a recipe gives for a run of `model` on `ranks` ranks.

    Raises ConfigError for sizes that do not fit each other, the network or the ranks, with those that do.
    """
    sizes = _fill(parallel, ranks)
    shards = sizes["data_parallel_shard"] * sizes["context"] * sizes["tensor"]
    expert = parallel.expert or expert_sizes(model, shards)[-1]
    layout = Layout(**sizes, expert=expert, recompute=parallel.recompute)
    check_layout(model, layout, sequence_length)
    return layout


def expert_sizes(model: ModelConfig, shards: int) -> list[int]:
    """Return the sizes of the expert axis that a network and its weight shards allow, ascending.

    Each rank holds equally many whole experts, and whole groups, or groups whole ranks: then a token that chooses
    `topk_group` groups travels to as few ranks.
    """
    E, G = (model.num_experts if _has_experts(model) else 1), max(1, model.n_group)
    return [n for n in divisors(shards) if E % n == 0 and (G % n == 0 or n % G == 0)]


def check_layout(model: ModelConfig, layout: Layout, sequence_length: int) -> None:
    """Raise ConfigError that names the sizes to choose from unless `model` can be divided so."""
    T, E = layout.tensor, layout.expert
    if _has_experts(model):
        if E not in (valid := expert_sizes(model, layout.token_ranks)):
            groups = f" in {model.n_group} groups" if model.n_group > 1 else ""
            raise ConfigError(
                f"parallel.expert {E} does not fit {model.num_experts} experts{groups} on {layout.token_ranks} "
                f"data_parallel_shard x context x tensor ranks; use one of {_listed(valid)}"
            )
    elif E > 1:
        raise ConfigError(f"parallel.expert {E}: the model has no experts; use 1")
    _divides("tensor", T, "num_key_value_heads", model.num_key_value_heads)
    _divides("tensor", T, "vocab_size", model.vocab_size)
    if model.first_k_dense_replace:
        _divides("tensor", T, "intermediate_size", model.intermediate_size)
    if model.shared_expert_dim:
        _divides("tensor", T, "the shared expert's width", model.shared_expert_dim)
    if T > 1:
        _divides("data_parallel_shard x context", layout.weight_shards, "hidden_size", model.hidden_size)
        _divides("tensor", T, "hidden_size", model.hidden_size)
    _divides("context", layout.context, "train.sequence_length", sequence_length)
    A, K = model.num_attention_heads // T, model.num_key_value_heads // T
    fitting = [n for n in divisors(A) if K % n == 0 or n % K == 0]
    if layout.context not in fitting:
        raise ConfigError(
            f"parallel.context {layout.context} does not share out {A} query and {K} key-value heads evenly; "
            f"use one of {_listed(fitting)}"
        )
    if layout.pipeline > model.num_hidden_layers:
        raise ConfigError(
            f"parallel.pipeline {layout.pipeline} is more than the {model.num_hidden_layers} layers; "
            f"use 1 to {model.num_hidden_layers}"
        )


def stage_layers(layers: int, stages: int) -> list[range]:
    """Cut main layers into runs of one length, the first ones longer by a layer if need be."""
    each, more = divmod(layers, stages)
    starts = [stage * each + min(stage, more) for stage in range(stages + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


def _has_experts(model: ModelConfig) -> bool:
    return bool(model.num_moe_layers or model.num_nextn_predict_layers)


def _fill(parallel: ParallelConfig, ranks: int) -> dict[str, int]:
    """Put what the others leave in the place of a 0."""
    sizes = {name: getattr(parallel, name) for name in AXES}
    left = next((name for name, size in sizes.items() if size == 0), None)
    given = math.prod(size or 1 for size in sizes.values())
    named = " x ".join(f"parallel.{name} {size}" for name, size in sizes.items() if size > 1) or "a single rank"
    if left is not None:
        if ranks % given:
            raise ConfigError(f"{named} does not divide {ranks} ranks; start a multiple of {given}, or lower one")
        return sizes | {left: ranks // given}
    if given != ranks:
        raise ConfigError(
            f"{named} makes {given} ranks, but {ranks} were started; set one of the sizes to 0, which takes what is "
            f"left, or start {given}"
        )
    return sizes


def divisors(number: int) -> list[int]:
    """Return the divisors of `number`, ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _divides(axis: str, size: int, what: str, number: int) -> None:
    if number % size:
        choices = [n for n in divisors(number) if n <= max(64, 2 * size)]
        raise ConfigError(f"parallel.{axis} {size} does not divide {what} {number}; use one of {_listed(choices)}")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:12]))
