"""How a model is divided over GPUs, as far as arithmetic needs to know.

The ranks are data_parallel_replicate x data_parallel_shard x context x tensor x pipeline. Weights are sharded over
`data_parallel_shard x context` ranks; the expert axis lies inside these, so experts are first split over `expert`
ranks and what is left is sharded over the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from ling.config import ModelConfig
from ling.config.fields import check_fields
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
    """Ranks that share out the routed experts; lies inside data_parallel_shard x context."""
    tensor: int = 1
    """Ranks that share out heads, feed-forward widths and the vocabulary."""
    context: int = 1
    """Ranks that share out the tokens of a sequence."""
    pipeline: int = 1
    """Stages that share out the layers."""
    recompute: Recompute = "none"
    """selective: the feed-forward half of each block is computed again in backward; full: the whole block."""

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
    def weight_shards(self) -> int:
        """Ranks that a dense weight is sharded over."""
        return self.data_parallel_shard * self.context

    @property
    def expert_shards(self) -> int:
        """Ranks that an expert's weight is sharded over, once `expert` ranks have split the stack."""
        return self.weight_shards // self.expert

    def __str__(self) -> str:
        short = {
            "data_parallel_shard": "shard", "data_parallel_replicate": "replicate", "expert": "expert",
            "tensor": "tensor", "context": "context", "pipeline": "pipeline",
        }  # fmt: skip
        named = [f"{short[name]} {size}" for name, size in self.axes() if size > 1]
        return ", ".join(named) or "one process"


def check_layout(model: ModelConfig, layout: Layout, sequence_length: int) -> None:
    """Raise ConfigError that names the sizes to choose from unless `model` can be divided so."""
    T, E = layout.tensor, layout.expert
    if model.num_moe_layers:
        _divides("expert", E, "num_experts", model.num_experts)
        _divides("expert", E, "data_parallel_shard x context", layout.weight_shards)
    elif E > 1:
        raise ConfigError(f"parallel.expert {E}: the model has no experts; use 1")
    _divides("tensor", T, "num_key_value_heads", model.num_key_value_heads)
    _divides("tensor", T, "vocab_size", model.vocab_size)
    if model.first_k_dense_replace:
        _divides("tensor", T, "intermediate_size", model.intermediate_size)
    if model.shared_expert_dim:
        _divides("tensor", T, "the shared expert's width", model.shared_expert_dim)
    _divides("context", layout.context, "data.sequence_length", sequence_length)
    _divides("context", layout.context, "the heads of a tensor rank", model.num_attention_heads // T)
    if layout.pipeline > model.num_hidden_layers:
        raise ConfigError(
            f"parallel.pipeline {layout.pipeline} is more than the {model.num_hidden_layers} layers; "
            f"use 1 to {model.num_hidden_layers}"
        )


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
