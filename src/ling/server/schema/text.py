"""`POST /tokenize` and `POST /detokenize`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ling.server.schema.chat import MOST_MESSAGES, TemplateOptions
from ling.server.schema.messages import Message
from ling.server.schema.strict import Strict, Text, TokenId, refuse
from ling.server.schema.tools import MOST_TOOLS, Tool


class TokenizeRequest(Strict):
    model: Text = "auto"
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None
    tools: list[Tool] = Field(default_factory=list, max_length=MOST_TOOLS)
    chat_template_kwargs: TemplateOptions | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = True
    """The published tokenizer adds none either way."""
    return_token_strs: bool = False
    continue_final_message: Literal[False] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            refuse("give either a prompt or messages", field="prompt")
        if self.prompt is not None and (self.tools or self.chat_template_kwargs):
            given = "tools" if self.tools else "chat_template_kwargs"
            refuse("tools and chat_template_kwargs go with messages", field=given)
        return self


class DetokenizeRequest(Strict):
    model: Text = "auto"
    tokens: Annotated[list[TokenId], Field(max_length=2**20)]
