"""Answers that must call tools: our own parser reads every one, and arguments follow the tool's schema."""

import json

import pytest
from tests.engine.grammar_walks import accepts, bundled_compiler, bundled_tokenizer, conforms, ids_of, walk

from ling.engine.request import StructuredOutputsParams
from ling.engine.tool_grammar import MOST_CALLS, tool_call_grammar
from ling.errors import RequestError
from ling.tokenizer.tool_calls import format_tool_call, parse_answer

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TAGS = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2}},
    "$defs": {"tag": {"type": "string", "maxLength": 4}},
    "required": ["tags"],
    "additionalProperties": False,
}


def tool(name: str, parameters: object = None, **more: object) -> dict[str, object]:
    given = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, "description": "~20000 {99999}", **given, **more}}


TOOLS = [tool("get", WEATHER), tool("get_tags", TAGS, strict=True), tool("now")]
SCHEMAS = {"get": WEATHER, "get_tags": TAGS, "now": {"type": "object", "additionalProperties": False}}


@pytest.mark.parametrize("choice", ["required", "get", "get_tags", "now"])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_random_walk_calls_tools_as_their_schemas_say(choice, parallel):
    grammar = bundled_compiler().compile(tool_call_grammar(TOOLS, choice, parallel=parallel))
    counts, names = set(), set()
    for seed in range(20):
        answer = parse_answer(walk(grammar, bundled_tokenizer(), seed))
        assert not answer.malformed
        assert answer.content is None
        counts.add(len(answer.tool_calls))
        for call in answer.tool_calls:
            names.add(call.name)
            assert conforms(call.arguments, SCHEMAS[call.name]), call
    if choice == "required":
        assert names == SCHEMAS.keys()
        assert (max(counts) > 1) is parallel
    else:
        assert (names, counts) == ({choice}, {1})
    assert min(counts) == 1


def test_calls_are_spelt_as_the_chat_format_spells_them():
    grammar = bundled_compiler().compile(tool_call_grammar(TOOLS, "required", parallel=True))
    calls = [
        format_tool_call("get", {"city": "Pa\u00eds", "days": 3, "unit": "celsius"}),
        format_tool_call("now", {}),
        format_tool_call("get_tags", {"tags": ["a", "b"]}),
    ]
    assert accepts(grammar, bundled_tokenizer(), "\n".join(calls))
    for text in ("", "Hello", "\n" + calls[0], calls[0] + calls[1], calls[0] + "\n", "\n\n".join(calls)):
        assert not accepts(grammar, bundled_tokenizer(), text), text
    for name, arguments in (("nosuch", {}), ("now", {"a": 1}), ("get", {"city": "x"}), ("get", TAGS)):
        assert not accepts(grammar, bundled_tokenizer(), format_tool_call(name, arguments)), (name, arguments)


def test_a_model_that_only_repeats_calls_is_stopped():
    grammar = bundled_compiler().compile(tool_call_grammar(TOOLS, "required", parallel=True))
    call = format_tool_call("now", {})
    assert accepts(grammar, bundled_tokenizer(), "\n".join([call] * MOST_CALLS))
    assert not accepts(grammar, bundled_tokenizer(), "\n".join([call] * (MOST_CALLS + 1)))


def test_arguments_are_bounded_as_json_is():
    params = tool_call_grammar([tool("f", {"type": "object"})], "f", parallel=False)
    matcher = bundled_compiler().compile(params).matcher()
    tokenizer = bundled_tokenizer()
    matcher.advance(ids_of(tokenizer, '<tool_call>\n{"name": "f", "arguments": {"a": 1234567890123456789'))
    assert matcher.allowed(ids_of(tokenizer, "0"))[1] == 0
    assert matcher.allowed(ids_of(tokenizer, ".5"))[1] == 0
    assert matcher.allowed(ids_of(tokenizer, ', "b": [1]}}'))[1] == 12


def test_strict_refuses_what_cannot_be_enforced_and_otherwise_it_is_left_out():
    unique = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    bundled_compiler().compile(tool_call_grammar([tool("f", unique)], "f", parallel=False))
    with pytest.raises(RequestError, match="uniqueItems"):
        bundled_compiler().compile(tool_call_grammar([tool("f", unique, strict=True)], "f", parallel=False))


def test_a_plain_grammar_does_not_get_the_bounds_of_json():
    grammar = bundled_compiler().compile(StructuredOutputsParams(grammar="start: /[0-9]+/"))
    assert accepts(grammar, bundled_tokenizer(), "1" * 50)


@pytest.mark.parametrize(
    ("tools", "choice", "reason"),
    [
        (TOOLS, "nosuch", "names 'nosuch', which is not among tools"),
        ([], "required", "not among tools"),
        ([tool("f", {"type": "array"})], "f", "parameters of tool f must be a schema of type object, got 'array'"),
        ([tool("f", {"properties": {"a": {"$ref": "http://x"}}})], "f", r"parameters of tool f has \$ref"),
        ([tool("f", {"enum": list(range(5000))})], "required", "enum of 5000 values"),
    ],
)
def test_tools_that_cannot_be_served_are_refused_by_name(tools, choice, reason):
    with pytest.raises(RequestError, match=reason):
        tool_call_grammar(tools, choice, parallel=True)


def test_many_large_tools_compile():
    tools = [tool(f"tool_{i}", {"properties": {f"p{j}": {"type": "string"} for j in range(40)}}) for i in range(128)]
    params = tool_call_grammar(tools, "required", parallel=True)
    grammar = bundled_compiler().compile(params)
    text = format_tool_call("tool_127", json.dumps({"p3": "x", "p39": ""}))
    assert accepts(grammar, bundled_tokenizer(), text)
