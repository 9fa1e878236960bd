"""What is asked of the engine, and what it answers. Names are those that users of vLLM know."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ling.engine import arguments
from ling.errors import RequestError

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
"""Below, logits overflow when they are divided by it; above, text is noise."""
LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY = 0.01, 100.0
MOST_LOGIT_BIASES = 1024
MOST_CHOICES = 16
MOST_STOPS, LONGEST_STOP = 16, 256
MOST_LOGPROBS = 20

_WHOLE = ("n", "top_k", "min_tokens")
_WHOLE_OR_NONE = ("max_tokens", "seed", "logprobs", "prompt_logprobs")
_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What form an answer must have; exactly one is given."""

    json: Mapping[str, Any] | bool | str | None = None
    """A JSON schema, or its text."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    choice: Sequence[str] | None = None
    """One of these texts."""
    grammar: str | None = None
    """Lark, as llguidance reads it."""

    def __post_init__(self) -> None:
        given = [n for n in ("json", "regex", "choice", "grammar") if getattr(self, n) is not None]
        given += ["json_object"] * self.json_object
        if len(given) != 1:
            raise RequestError(
                f"structured_outputs takes exactly one of json, json_object, regex, choice and grammar, "
                f"got {' and '.join(given) or 'none'}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop."""

    n: int = 1
    """Answers to the same prompt, each with noise of its own."""
    temperature: float = 1.0
    """0: always the most likely token."""
    top_p: float = 1.0
    """Only the smallest set of most likely tokens that holds this probability."""
    top_k: int = 0
    """Only the k most likely tokens; 0 or -1: all."""
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
    stop: str | Sequence[str] | None = ()
    """End the answer where one of these texts appears; the text itself is left out."""
    include_stop_str_in_output: bool = False
    stop_token_ids: Sequence[int] = ()
    """End the answer, beside the model's own stop ids and whatever `ignore_eos` says."""
    ignore_eos: bool = False
    """Go on past the model's own stop ids."""
    max_tokens: int | None = 16
    """None: as many as the context holds."""
    min_tokens: int = 0
    """Stop ids cannot be chosen before the answer has so many tokens, and texts of `stop` in them end nothing."""
    seed: int | None = None
    """Same seed, same text, whatever else is in the batch; None: the engine gives each request its own."""
    logprobs: int | None = None
    """Log-probabilities of so many most likely tokens, and of the chosen one, before penalties and temperature."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt after the first."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    structured_outputs: StructuredOutputsParams | None = None

    is_free: bool = field(init=False, repr=False, compare=False)
    """Whether nothing but logits and temperature decides, where no grammar or least length does."""

    def __post_init__(self) -> None:
        self._settle_types()
        ranks = self.temperature and (self.top_p != 1 or self.top_k > 0 or self.min_p)
        object.__setattr__(self, "is_free", not ranks and not self.logit_bias and not self.counts_tokens)
        if not 1 <= self.n <= MOST_CHOICES:
            raise RequestError(f"n must lie between 1 and {MOST_CHOICES}, got {self.n}")
        if not (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE):
            raise RequestError(
                f"temperature must be 0 (always the most likely token) or between {LEAST_TEMPERATURE:g} and "
                f"{MOST_TEMPERATURE:g}, got {self.temperature}"
            )
        if self.top_k < -1:
            raise RequestError(f"top_k must not be negative (0 or -1: all), got {self.top_k}")
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
        self._check_lists()
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= MOST_LOGPROBS:
                raise RequestError(f"{name} must lie between 0 and {MOST_LOGPROBS}, got {value}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.min_tokens <= (self.min_tokens if self.max_tokens is None else self.max_tokens):
            raise RequestError(f"min_tokens must lie between 0 and max_tokens, got {self.min_tokens}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise RequestError(f"seed must fit 64 bits, got {self.seed}")

    def _settle_types(self) -> None:
        """Make numpy's numbers Python's and lists tuples; None where a list may be is an empty one."""
        settled: dict[str, Any] = {name: arguments.whole(name, getattr(self, name)) for name in _WHOLE}
        optional = ((name, getattr(self, name)) for name in _WHOLE_OR_NONE)
        settled |= {name: arguments.whole(name, value) for name, value in optional if value is not None}
        settled |= {name: arguments.real(name, getattr(self, name)) for name in _REAL}
        settled["logit_bias"] = arguments.biases("logit_bias", self.logit_bias)
        settled["stop"] = arguments.texts("stop", self.stop)
        ids = () if self.stop_token_ids is None else self.stop_token_ids
        settled["stop_token_ids"] = tuple(arguments.token_ids("stop_token_ids", ids))
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise RequestError(f"structured_outputs must be StructuredOutputsParams, got {self.structured_outputs!r}")

    def _check_lists(self) -> None:
        if len(self.logit_bias) > MOST_LOGIT_BIASES:
            raise RequestError(f"logit_bias may name {MOST_LOGIT_BIASES} tokens, got {len(self.logit_bias)}")
        for token, bias in self.logit_bias.items():
            if not (math.isfinite(bias) and -100 <= bias <= 100):
                raise RequestError(f"logit_bias must lie between -100 and 100, got {bias} for token {token}")
        if len(self.stops) > MOST_STOPS:
            raise RequestError(f"stop may name {MOST_STOPS} texts, got {len(self.stops)}")
        for text in self.stops:
            if not 0 < len(text) <= LONGEST_STOP:
                raise RequestError(f"a text of stop must have 1 to {LONGEST_STOP} characters, got {len(text)}")

    @property
    def stops(self) -> tuple[str, ...]:
        return arguments.texts("stop", self.stop)

    @property
    def counts_tokens(self) -> bool:
        """Whether a choice depends on which tokens stand before it."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


class Logprob(NamedTuple):
    """One token's place in a distribution."""

    logprob: float
    """Nats, of the model's distribution before penalties and temperature."""
    rank: int
    """1: the most likely."""
    decoded_token: str


TokenLogprobs = dict[int, Logprob]
"""By token id, the chosen one first."""


@dataclass(slots=True, kw_only=True)
class Delta:
    """What one step adds to one answer. Joined, the deltas of an answer are its `CompletionOutput`."""

    request_id: str
    index: int
    """Which of the request's `n` answers."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """With the stop token, where there is one."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """As long as `token_ids` where they were asked for, otherwise empty."""
    finish_reason: FinishReason | None = None
    """With the last delta."""
    stop_reason: int | str | None = None
    """The text of `stop` or the id of `stop_token_ids` that ended the answer; None for the model's own stop ids."""
    error: Exception | None = None
    """Why the answer failed; with finish_reason "error"."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """With the first delta of answer 0, where they were asked for; the first token has none."""
    num_cached_tokens: int = 0
    """Of the prompt, taken from the prefix cache; with the first delta."""


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One answer."""

    index: int
    text: str
    """Without special tokens, unless they were asked for."""
    token_ids: list[int]
    """What was generated, the stop token included."""
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """The answers to one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finished: bool = True
    num_cached_tokens: int = 0
