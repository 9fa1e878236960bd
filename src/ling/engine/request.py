"""What is asked of the engine, and what it answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ling.errors import RequestError

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
"""Below, logits overflow when they are divided by it; above, text is noise."""
LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY = 0.01, 100.0
MOST_LOGIT_BIASES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop."""

    temperature: float = 0.0
    """0: always the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Only the smallest set of most likely tokens that holds this probability."""
    min_p: float = 0.0
    """Only tokens at least this fraction as probable as the most likely one; 0: all."""
    repetition_penalty: float = 1.0
    """Divides positive logits of every token of the prompt and the answer so far, and multiplies negative ones."""
    presence_penalty: float = 0.0
    """Taken off the logits of every token of the answer so far."""
    frequency_penalty: float = 0.0
    """The same, times how often the token was chosen."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    stop_token_ids: tuple[int, ...] = ()
    """End the answer, beside the model's own stop ids and whatever `ignore_eos` says."""
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
        if not 0 <= self.min_p <= 1:
            raise RequestError(f"min_p must lie in [0, 1], got {self.min_p}")
        if not LEAST_REPETITION_PENALTY <= self.repetition_penalty <= MOST_REPETITION_PENALTY:
            raise RequestError(
                f"repetition_penalty must lie between {LEAST_REPETITION_PENALTY:g} and {MOST_REPETITION_PENALTY:g} "
                f"(1: none), got {self.repetition_penalty}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= (value := getattr(self, name)) <= 2:
                raise RequestError(f"{name} must lie between -2 and 2, got {value}")
        if len(self.logit_bias) > MOST_LOGIT_BIASES:
            raise RequestError(f"logit_bias may name {MOST_LOGIT_BIASES} tokens, got {len(self.logit_bias)}")
        for token, bias in self.logit_bias.items():
            if not (math.isfinite(bias) and -100 <= bias <= 100):
                raise RequestError(f"logit_bias must lie between -100 and 100, got {bias} for token {token}")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}")

    @property
    def counts_tokens(self) -> bool:
        """Whether a choice depends on which tokens stand before it."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the choice is the most likely token and nothing else counts."""
        return self.temperature == 0 and not self.logit_bias and not self.counts_tokens


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
