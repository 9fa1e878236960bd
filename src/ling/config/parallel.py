"""The section `parallel`: how the ranks of a run share model, data and memory."""

from dataclasses import dataclass
from typing import Literal

from ling.config.fields import check_fields
from ling.errors import ConfigError

AXES = ("data_parallel_shard", "data_parallel_replicate", "tensor", "context", "pipeline")
"""The axes whose sizes multiply to the number of ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """Sizes of the axes that ranks are laid out along; 0: what the others leave of them. One process has only ones."""

    data_parallel_shard: int = 0
    """Ranks that share out weights, gradients and moments of one copy of the model (FSDP2); each reads its own data."""
    data_parallel_replicate: int = 1
    """Copies of that (HSDP): gradients are added up between them."""
    expert: int = 1
    """Ranks that the routed experts of a layer are shared out to, each keeping whole ones; taken out of the
    sharding and context ranks, not in addition to them. 0: the most that the experts and those ranks allow."""
    tensor: int = 1
    """Ranks that share out heads, widths of dense feed-forwards and the vocabulary, and between them the tokens."""
    context: int = 1
    """Ranks that share out the tokens of a microbatch, and attention's heads while it runs (Ulysses)."""
    pipeline: int = 1
    """Stages that the layers are cut into; microbatches follow each other through them (1F1B). With few of them, or
    one, stages wait for each other."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What backward computes again instead of keeping it: nothing; routed experts, the largest; or whole blocks."""

    def __post_init__(self) -> None:
        check_fields(self, "parallel")
        for name in (*AXES, "expert"):
            if getattr(self, name) < 0:
                raise ConfigError(f"parallel.{name} must not be negative, got {getattr(self, name)}")
        left = [name for name in AXES if getattr(self, name) == 0]
        if len(left) > 1:
            raise ConfigError(f"parallel.{left[0]} and parallel.{left[1]} are both 0; only one can take what is left")
