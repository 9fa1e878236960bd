"""Tools that an answer may call, and whether it must."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ling.server.schema.strict import Strict

MOST_TOOLS = 128

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Strict):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments; left out: none are taken."""
    strict: bool | None = None
    """Whether arguments must follow the schema to the letter."""


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    name: ToolName


class NamedTool(Strict):
    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool
