"""What chat and completions have in common: how to sample, when to stop, what to report."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ling.engine.request import LONGEST_STOP, MOST_CHOICES, MOST_LOGIT_BIASES, MOST_LOGPROBS, MOST_STOPS
from ling.server.schema.strict import Strict, Text, TokenId

MOST_TOKENS = 2**31 - 1
LONGEST_GRAMMAR = 100_000
"""Characters of a regex or a grammar."""

Penalty = Annotated[float, Field(ge=-2, le=2)]
StopText = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Formal = Annotated[str, Field(min_length=1, max_length=LONGEST_GRAMMAR)]
Choices = Annotated[list[Annotated[str, Field(min_length=1, max_length=10_000)]], Field(min_length=1, max_length=1000)]


class StreamOptions(Strict):
    include_usage: bool = False
    """One more chunk at the end, without choices, with the usage."""
    continuous_usage_stats: bool = False
    """The usage so far with every chunk (vLLM's)."""


class StructuredOutputs(Strict):
    """As vLLM's `structured_outputs`: exactly one of them."""

    json_schema: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: Formal | None = None
    choice: Choices | None = None
    grammar: Formal | None = None


class GenerationRequest(Strict):
    model: Text = "auto"
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MOST_TOKENS)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[Text, float] = Field(default_factory=dict, max_length=MOST_LOGIT_BIASES)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    min_tokens: int = Field(0, ge=0, le=MOST_TOKENS)
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MOST_STOPS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: Literal[True] | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: Formal | None = None
    guided_choice: Choices | None = None
    guided_grammar: Formal | None = None
    cache_salt: Text | None = Field(None, min_length=1)
    """Prompts share cached work only with prompts of the same salt."""
    user: Text | None = None
    """For the operator's records, as are the next ones; an answer does not depend on them."""
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Text], Field(max_length=16)] | None = None
    store: Literal[False] | None = None
    """Nothing is stored."""
