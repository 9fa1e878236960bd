"""Which form an answer must have: response_format, structured_outputs or vLLM's guided_*, or calls of tools."""

from ling.engine.request import StructuredOutputsParams
from ling.engine.tool_grammar import tool_call_grammar
from ling.server.errors import ApiError
from ling.server.optional_calls import optional_call_grammar
from ling.server.schema import ChatRequest, GenerationRequest, NamedTool

_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


def constraint_of(request: GenerationRequest) -> StructuredOutputsParams | None:
    """Return the one form that `request` asks for, or None. Raises ApiError for several, RequestError for a bad one."""
    asked = _asked(request)
    calls = _calls(request) if isinstance(request, ChatRequest) else None
    if isinstance(request, ChatRequest) and request.may_call and asked:
        raise ApiError(f"{asked[0][0]} and tools exclude each other: an answer has one form", param=asked[0][0])
    if len(asked) > 1:
        raise ApiError(f"{' and '.join(name for name, _ in asked)} exclude each other", param=asked[1][0])
    return asked[0][1] if asked else calls


def _asked(request: GenerationRequest) -> list[tuple[str, StructuredOutputsParams]]:
    asked: list[tuple[str, StructuredOutputsParams]] = []
    for field, name in _GUIDED.items():
        if (value := getattr(request, field)) is not None:
            asked.append((field, StructuredOutputsParams(**{name: value})))
    if (own := request.structured_outputs) is not None:
        params = StructuredOutputsParams(
            json=own.json_schema, json_object=bool(own.json_object), regex=own.regex, choice=own.choice,
            grammar=own.grammar,
        )  # fmt: skip
        asked.append(("structured_outputs", params))
    if isinstance(request, ChatRequest) and (format := request.response_format) is not None:
        if format.json_schema is not None:
            asked.append(("response_format", StructuredOutputsParams(json=format.json_schema.json_schema)))
        elif format.type == "json_object":
            asked.append(("response_format", StructuredOutputsParams(json_object=True)))
    return asked


def _calls(request: ChatRequest) -> StructuredOutputsParams | None:
    """Return the grammar of calls that must be made, or that must be strict if they are made."""
    tools = [tool.model_dump(exclude_unset=True) for tool in request.tools]
    if request.must_call:
        choice = request.tool_choice.function.name if isinstance(request.tool_choice, NamedTool) else "required"
        return tool_call_grammar(tools, choice, parallel=request.parallel_tool_calls)
    if request.may_call and any(tool.function.strict for tool in request.tools):
        return optional_call_grammar(tools, parallel=request.parallel_tool_calls)
    return None
