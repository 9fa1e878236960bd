"""`POST /v1/chat/completions`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ling.engine.request import MOST_LOGPROBS
from ling.server.schema.generation import MOST_TOKENS, GenerationRequest
from ling.server.schema.messages import Message
from ling.server.schema.strict import Strict, Text, refuse
from ling.server.schema.tools import MOST_TOOLS, NamedTool, Tool, ToolChoice

MOST_MESSAGES = 2048


class JsonSchema(Strict):
    name: Text | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """The schema is followed either way."""


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            refuse("json_schema goes with type json_schema, and only with it", field="json_schema")
        return self


class TemplateOptions(Strict):
    """What of the chat format a request may choose; both names mean the same."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class ChatRequest(GenerationRequest):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[Tool] = Field(default_factory=list, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_generation_prompt: Literal[True] | None = None
    include_reasoning: Literal[True] | None = None
    separate_reasoning: Literal[True] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            refuse("max_tokens and max_completion_tokens are two names of one limit; give one", field="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            refuse("top_logprobs needs logprobs true", field="top_logprobs")
        if self.stream_options is not None and not self.stream:
            refuse("stream_options needs stream true", field="stream_options")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            refuse("two of the tools have the same name", field="tools")
        if self.tool_choice not in (None, "none") and not self.tools:
            refuse("tool_choice needs tools", field="tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            refuse("tool_choice names a function that is not among the tools", field="tool_choice")
        return self

    @property
    def may_call(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)
