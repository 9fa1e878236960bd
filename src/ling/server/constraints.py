"""Which form an answer must have: response_format, structured_outputs or vLLM's guided_*, or calls of tools."""

from collections.abc import Iterator
from contextlib import contextmanager

from ling.engine.request import StructuredOutputsParams
from ling.engine.tool_grammar import tool_call_grammar
from ling.errors import RequestError
from ling.server.errors import ApiError
from ling.server.optional_calls import json_or_calls, optional_call_grammar
from ling.server.schema import ChatRequest, GenerationRequest, NamedTool

_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


def constraint_of(request: GenerationRequest) -> StructuredOutputsParams | None:
    """Return the one form that `request` asks for, or None. Raises ApiError for several, RequestError for a bad one."""
    asked = _asked(request)
    if len(asked) > 1:
        raise ApiError(f"{' and '.join(name for name, _ in asked)} exclude each other", param=asked[1][0])
    name, form = asked[0] if asked else ("", None)
    if not isinstance(request, ChatRequest) or not request.may_call:
        return form
    tools = [tool.model_dump(exclude_unset=True) for tool in request.tools]
    parallel = request.parallel_tool_calls
    if request.must_call:  # and there is nothing else in the answer
        choice = request.tool_choice.function.name if isinstance(request.tool_choice, NamedTool) else "required"
        return tool_call_grammar(tools, choice, parallel=parallel)
    if form is None:
        strict = any(tool.function.strict for tool in request.tools)
        return optional_call_grammar(tools, parallel=parallel) if strict else None
    if (either := json_or_calls(form, tools, parallel=parallel)) is None:
        raise ApiError(f"{name} and tools: beside calls, only JSON can be asked for", param=name)
    return either


@contextmanager
def naming_the_form(request: GenerationRequest) -> Iterator[None]:
    """Name the field that asks for a form where the form is wrong: its own message is about the form alone."""
    try:
        yield
    except RequestError as error:
        forms = (*_GUIDED, "structured_outputs", "response_format")
        given = [name for name in forms if getattr(request, name, None) is not None]
        if isinstance(request, ChatRequest) and (request.must_call or not given):
            given = ["tools"]
        raise ApiError(str(error), param=given[0]) from None


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
