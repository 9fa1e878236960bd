"""What is asked of the engine, and what it answers."""

from dataclasses import dataclass
from typing import Literal

from ling.errors import RequestError

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
"""Below, logits overflow when they are divided by it; above, text is noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop."""

    temperature: float = 0.0
    """0: always the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Only the smallest set of most likely tokens that holds this probability."""
    seed: int = 0
    """Same seed, same text, whatever else is in the batch."""
    max_tokens: int = 256
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE):
            raise RequestError(
                f"temperature must be 0 (always the most likely token) or between {LEAST_TEMPERATURE:g} and "
                f"{MOST_TEMPERATURE:g}, got {self.temperature}"
            )
        if self.top_k < 0:
            raise RequestError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(slots=True, kw_only=True)
class Sequence:
    """A request on its way: its tokens so far, and how far each cache has got."""

    slot: int
    tokens: list[int]
    num_prompt: int
    params: SamplingParams
    max_new: int
    """Tokens it may still grow by in all: `max_tokens`, or less where the context ends."""
    num_cached: int = 0
    """Tokens whose keys and values the main layers hold."""
    num_drafted_slots: int = 0
    """Slots whose keys and values the MTP layer holds."""
    drafts: tuple[int, ...] = ()
    """Proposed tokens behind the last one."""
    finish_reason: Literal["stop", "length"] | None = None

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.num_prompt :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The answer to one prompt."""

    text: str
    """Without special tokens."""
    token_ids: list[int]
    """What was generated, the stop token included."""
    finish_reason: Literal["stop", "length"]


@dataclass(slots=True)
class GenerationStats:
    """What a call to the engine did."""

    seconds: float = 0.0
    steps: int = 0
    """Forward passes of the main layers, those over the prompts included."""
    tokens: int = 0
    """Tokens generated."""
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance_fraction(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0
