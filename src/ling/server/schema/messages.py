"""The messages of a chat, each checked for what its role may have."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from ling.server.schema.strict import Strict, Text, refuse
from ling.server.schema.tools import MOST_TOOLS

Role = Literal["system", "developer", "user", "assistant", "tool"]

MOST_PARTS = 2048


def join_parts(content: object) -> object:
    """Turn content parts into one text; each on lines of its own."""
    if not isinstance(content, list):
        return content
    if not 1 <= len(content) <= MOST_PARTS:
        refuse("a content has 1 to {most} parts, got {count}", most=MOST_PARTS, count=len(content))
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            refuse("part {index} must be of type text: this model reads no images, audio or files", index=index)
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            refuse("part {index} must be type and text, a string, and nothing else", index=index)
        texts.append(part["text"])
    return "\n".join(texts)


_PART = {
    "type": "object", "additionalProperties": False, "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}  # fmt: skip
_PARTS = {"type": "array", "minItems": 1, "maxItems": MOST_PARTS, "items": _PART}
_CONTENT = {"anyOf": [{"type": "string"}, _PARTS, {"type": "null"}]}

Content = Annotated[str | None, BeforeValidator(join_parts), WithJsonSchema(_CONTENT)]


class CalledFunction(Strict):
    name: Text
    arguments: str
    """JSON of an object."""


class ToolCall(Strict):
    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
    """As streamed calls have it; their order says the same."""


class Message(Strict):
    role: Role
    content: Content = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_TOOLS)] | None = None
    reasoning_content: str | None = None
    tool_call_id: Text | None = None
    name: Text | None = None
    """Of the tool that answers; `tool_call_id` says which call it was."""
    refusal: None = None
    """This and what follows is null or empty in answers, which come back as messages."""
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        allowed = {"assistant": {"tool_calls", "reasoning_content"}, "tool": {"tool_call_id", "name"}}
        for field in ("tool_calls", "reasoning_content", "tool_call_id", "name"):
            if getattr(self, field) is not None and field not in allowed.get(self.role, ()):
                refuse("a message of the {role} has no {name}", field=field, role=self.role, name=field)
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.reasoning_content)):
            refuse("a message of the {role} needs a content", field="content", role=self.role)
        if self.role == "tool" and self.tool_call_id is None:
            refuse("a tool message needs the tool_call_id that it answers", field="tool_call_id")
        return self
