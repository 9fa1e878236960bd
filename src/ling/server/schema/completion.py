"""`POST /v1/completions`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ling.engine.request import MOST_LOGPROBS
from ling.server.schema.generation import MOST_TOKENS, GenerationRequest
from ling.server.schema.strict import TokenId, refuse

MOST_PROMPTS = 64

TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=2**20)]


class CompletionRequest(GenerationRequest):
    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    """One text, several, the token ids of one, or of several."""
    max_tokens: int | None = Field(16, ge=0, le=MOST_TOKENS)
    """0: only with echo, to have the prompt judged."""
    echo: bool = False
    """Put the prompt before the answer, in its logprobs as well."""
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    add_special_tokens: bool = True
    """The published tokenizer adds none either way."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            refuse("max_tokens 0 asks for nothing, except with echo true", field="max_tokens")
        if self.stream_options is not None and not self.stream:
            refuse("stream_options needs stream true", field="stream_options")
        return self
