"""What a rank holds at one moment of a step, by what it is for, and the fullest of these moments."""

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """Bytes at one moment."""

    parameters: float = 0
    """As kept between steps: this rank's shards, or everything where nothing is sharded."""
    gradients: float = 0
    copies: float = 0
    """FP8 codes of the weight that is multiplied by; in backward also of its transpose. No layer keeps any."""
    adapters: float = 0
    """LoRA's weights with their gradients and moments."""
    master: float = 0
    """Float32 copies of parameters that are kept in fewer bytes."""
    moments: float = 0
    gathered: float = 0
    """Whole weights of the blocks that run, in the compute dtype, and their gradients before they are shared out."""
    dense: float = 0
    """Activations of dense blocks."""
    sparse: float = 0
    """Activations of blocks with experts."""
    mtp: float = 0
    """Activations of MTP blocks."""
    loss: float = 0
    """A chunk of logits; gradients of head and hidden states that the loss makes on its way forward."""
    dispatch: float = 0
    """Buffers between expert ranks."""
    working: float = 0
    """What the operation at hand needs beside its saved inputs."""
    inputs: float = 0
    """Token ids, positions, labels, rotation tables."""

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in CATEGORIES)


CATEGORIES = tuple(f.name for f in fields(Bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The fullest moment of a step on the fullest rank."""

    peak: Bytes
    moment: str
    """When: "forward of block 3, feed-forward", "loss", "update", ..."""
    resting: Bytes
    """Between steps."""
    stage: int
    """Of the pipeline."""
    totals: dict[str, float]
    """Bytes by moment, in the order of a step."""


def largest_categories(held: Bytes, count: int = 2) -> Sequence[tuple[str, float]]:
    """Return names and bytes of the largest categories."""
    named = [(name, float(getattr(held, name))) for name in CATEGORIES]
    return sorted(named, key=lambda item: -item[1])[:count]
