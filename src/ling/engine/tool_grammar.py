"""The grammar of an answer that must call tools, in Ling's format (spec: tokenizer_chat.md 4)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ling.engine import grammar_limits
from ling.engine.grammar import BOUNDED_JSON, json_rule
from ling.engine.request import StructuredOutputsParams
from ling.errors import RequestError
from ling.tokenizer import wording

MOST_CALLS = 32
"""In one answer, where calls may be parallel; models get caught in repeating one."""

Tool = Mapping[str, Any]
"""As OpenAI's API passes it: {"type": "function", "function": {"name", "parameters", "strict", ...}}."""


def tool_call_grammar(tools: Sequence[Tool], choice: str, *, parallel: bool) -> StructuredOutputsParams:
    """Allow calls of `tools` and nothing else; their arguments follow the tools' `parameters`.

    tools     whose form was checked
    choice    "required": any of the tools; otherwise the name of the one to call, exactly once
    parallel  whether "required" allows more than one call
    return    Lark. A tool with `strict` is refused if its schema has keywords that cannot be enforced; without, they
              are left out. No `parameters` means no arguments.
    """
    functions = [tool["function"] for tool in tools]
    if choice != "required":
        functions = [function for function in functions if function["name"] == choice]
    if not functions:
        raise RequestError(f"tool_choice names {choice!r}, which is not among tools")
    calls = f'call ("\\n" call){{0,{MOST_CALLS - 1}}}' if parallel and choice == "required" else "call"
    rules = [
        f"start: {calls}",
        f"call: {' | '.join(f'call_{index}' for index in range(len(functions)))}",
        *(f"call_{index}: {_call(function)}" for index, function in enumerate(functions)),
    ]
    return StructuredOutputsParams(grammar=BOUNDED_JSON + "\n".join(rules))


def _call(function: Mapping[str, Any]) -> str:
    name = grammar_limits.to_json(function["name"])[1:-1]  # spelt as within a JSON string
    before = wording.CALL_BEFORE_NAME + name + wording.CALL_BEFORE_ARGUMENTS
    arguments = json_rule(_parameters(function), lenient=not function.get("strict"))
    return f"{grammar_limits.to_json(before)} {arguments} {grammar_limits.to_json(wording.CALL_AFTER)}"


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    where = f"the parameters of tool {function['name']}"
    if function.get("parameters") is None:
        return {"type": "object", "additionalProperties": False}
    schema = grammar_limits.checked_schema(function["parameters"], where)
    if schema.setdefault("type", "object") != "object":
        raise RequestError(f"{where} must be a schema of type object, got {schema['type']!r}")
    return schema
