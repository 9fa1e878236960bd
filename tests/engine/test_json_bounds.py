"""JSON that a model would never end ends all the same."""

import math

import pytest
import torch
from tests.engine.grammar_walks import accepts, bundled_compiler, bundled_tokenizer, ids_of, of_json

from ling.engine.json_bounds import MOST_DEPTH, MOST_DIGITS, JsonBounds


@pytest.fixture
def tokenizer():
    return bundled_tokenizer()


@pytest.fixture
def compiler():
    return bundled_compiler()


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"a": 1, "b": [1, 2]}', True),
        ('{"a":1,"b":[1,2]}', True),
        ('{"a":  1}', False),
        ('{ "a": 1}', False),
        ('{"a": 1\n}', False),
        (' {"a": 1}', False),
        ('{"a": 1} ', False),
    ],
)
def test_whitespace_is_one_space_at_most_after_comma_and_colon(compiler, tokenizer, text, allowed):
    assert accepts(of_json(compiler, {"type": "object"}), tokenizer, text) is allowed


@pytest.mark.parametrize(
    ("schema", "begin"),
    [
        ({"type": "integer"}, "1"),
        ({"type": "integer"}, "-9"),
        ({}, "3"),
        ({}, "1234567890123456789"),
        ({"type": "number"}, "-0.0"),
        ({"type": "number"}, "7.5e"),
        ({"type": "number"}, "12345678901234567.8e-"),
        ({"type": "number", "minimum": 0}, "0."),
        ({"type": "number", "minimum": 0}, "123456789012345678."),
        ({"allOf": [{}, {"type": "number"}]}, "1"),
    ],
)
def test_a_model_that_only_writes_digits_is_stopped(compiler, tokenizer, schema, begin):
    matcher = of_json(compiler, schema).matcher()
    ids = ids_of(tokenizer, begin)
    assert matcher.allowed(ids)[1] == len(ids)
    matcher.advance(ids)
    digits = ids_of(tokenizer, "0123456789")
    text = begin
    while (here := matcher.allowed()[0][0])[digits].any():
        chosen = next(id for id in reversed(digits) if here[id])
        matcher.advance([chosen])
        text += tokenizer.token_bytes(chosen).decode()
        assert len(text) < len(begin) + 30, text
    assert here[list(tokenizer.stop_ids)].all(), text
    mantissa, _, exponent = text.partition("e")
    assert sum(map(str.isdigit, mantissa)) <= MOST_DIGITS, text
    assert sum(map(str.isdigit, exponent)) <= 2, text
    assert math.isfinite(float(text))


def test_a_schema_that_demands_more_digits_gets_them(compiler, tokenizer):
    grammar = of_json(compiler, {"type": "number", "minimum": 1e-25, "maximum": 2e-25})
    assert accepts(grammar, tokenizer, "0.00000000000000000000000015")
    assert not accepts(grammar, tokenizer, "0.000000000000000000000000155")  # it might have ended


def test_a_schema_that_demands_more_depth_gets_it(compiler, tokenizer):
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(MOST_DEPTH - 5):
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    text = '{"a": ' * 20 + "[" * (MOST_DEPTH - 5) + "1" + "]" * (MOST_DEPTH - 5) + "}" * 20
    deep = {"$defs": {"s": schema}, "type": "object", "required": ["a"], "additionalProperties": False}
    deep["properties"] = {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#/$defs/s"}]}}
    assert accepts(of_json(compiler, deep), tokenizer, text)


@pytest.mark.parametrize("schema", [{}, {"type": "array", "items": {"$ref": "#"}}, {"allOf": [{"type": "array"}, {}]}])
def test_a_model_that_only_opens_brackets_is_stopped(compiler, tokenizer, schema):
    matcher = of_json(compiler, schema).matcher()
    bracket = ids_of(tokenizer, "[")[0]
    depth = 0
    while matcher.allowed()[0][0][bracket]:
        matcher.advance([bracket])
        depth += 1
        assert depth <= MOST_DEPTH
    assert depth == MOST_DEPTH
    matcher.advance(ids_of(tokenizer, "]" * depth))
    assert matcher.allowed([tokenizer.stop_ids[0]])[1] == 1


def test_bounds_count_what_tokens_do_outside_strings_only(tokenizer):
    bounds = JsonBounds([b'{"a": "[[{"', b'":[', b"\\", b'"', b"x[", b"12", b"e5"])
    place = bounds.after(JsonBounds.START, b'{"a": "[[\\"[", "b": [-12.5e3')
    assert (place.depth, place.in_string, place.digits) == (2, False, MOST_DIGITS - 1)
    everything = torch.ones(7, dtype=torch.bool)
    at = bounds.after(JsonBounds.START, b"[" * MOST_DEPTH + b'"')
    assert bounds.narrow(at, everything).tolist() == [False, False, True, True, True, True, True]
    escaped = bounds.after(at, b"\\")
    assert bounds.narrow(escaped, everything).tolist() == [False] + [True] * 6
    assert bounds.narrow(bounds.after(JsonBounds.START, b"[" * 40 + b'"'), everything).sum() == 5
    number = bounds.after(JsonBounds.START, b"1" * (MOST_DIGITS - 1))
    assert bounds.narrow(number, everything).tolist() == [True] * 5 + [False, False]
    only_longer = torch.tensor([False] * 5 + [True] * 2)
    assert bounds.narrow(number, only_longer).equal(only_longer)
