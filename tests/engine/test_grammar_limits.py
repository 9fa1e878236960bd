"""What a request's grammar may not be, and what a hostile one costs."""

import contextlib
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.grammar_walks import (
    bundled_compiler,
    of_json,
)

from ling.engine import grammar_limits
from ling.engine.request import StructuredOutputsParams
from ling.errors import RequestError

KEYWORDS = st.text(max_size=3) | st.sampled_from(
    [
        "type",
        "items",
        "properties",
        "required",
        "enum",
        "const",
        "anyOf",
        "allOf",
        "oneOf",
        "$ref",
        "$defs",
        "minLength",
        "maxLength",
        "pattern",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "additionalProperties",
        "prefixItems",
        "format",
        "multipleOf",
        "patternProperties",
        "not",
    ]
)
SHORT = {"type": "string", "maxLength": 6}


@pytest.fixture
def compiler():
    return bundled_compiler()


WRONG = {
    "text that is no JSON": ({"json": "{"}, "is not JSON"),
    "a NaN": ({"json": '{"minimum": NaN}'}, "NaN is no number"),
    "an infinity": ({"json": {"minimum": math.inf}}, "is not JSON"),
    "a value that is no JSON": ({"json": {"enum": {1, 2}}}, "is not JSON"),
    "half a surrogate pair": ({"json": {"const": "\ud800"}}, "not Unicode"),
    "false": ({"json": False}, "must be an object or true"),
    "a list": ({"json": "[]"}, "must be an object or true"),
    "an unknown type": ({"json": {"type": "foo"}}, "Invalid type: foo"),
    "a keyword that cannot be kept": ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    "nothing allowed": ({"json": {"type": "string", "minLength": 5, "maxLength": 3}}, "minLength"),
    "a reference to itself": ({"json": {"$ref": "#"}}, "cannot be compiled"),
    "a missing reference": ({"json": {"$ref": "#/$defs/x"}}, "x"),
    "a remote reference": ({"json": {"items": {"$ref": "http://a.b/c"}}}, r"\$ref 'http://a.b/c'"),
    "own spelling": ({"json": {"x-guidance": {"whitespace_flexible": True}}}, "x-guidance"),
    "a huge schema": ({"json": {"description": "x" * 70_000}}, "at most 65536"),
    "a huge text": ({"json": "[" * 70_000}, "at most 65536"),
    "a deep text": ({"json": '{"items":' * 5000 + "{}" + "}" * 5000}, "nested deeper"),
    "a deep schema": ({"json": '{"items":' * 100 + "{}" + "}" * 100}, "nested deeper"),
    "a huge enum": ({"json": {"items": {"enum": list(range(2000))}}}, "enum of 2000 values"),
    "a huge integer": ({"json": {"const": 10**30}}, "exceeds 64 bits"),
    "a huge minItems": ({"json": {"properties": {"a": {"minItems": 10**6}}}}, "minItems 1000000"),
    "a huge maxLength": ({"json": {"$defs": {"a": {"maxLength": 10**9}}}}, "maxLength"),
    "a huge repeat in a pattern": ({"json": {"anyOf": [{"pattern": "^a{999999}$"}]}}, "repeats something 999999"),
    "a huge pattern": ({"json": {"patternProperties": {"a" * 5000: {}}}}, "1 to 4096"),
    "a bad pattern": ({"json": {"type": "string", "pattern": "("}}, "unclosed group"),
    "a bad regex": ({"regex": "a(b"}, "unclosed group"),
    "an empty regex": ({"regex": ""}, "1 to 4096"),
    "a huge regex": ({"regex": "a" * 5000}, "1 to 4096"),
    "look-around": ({"regex": "(?=a)b"}, "look-around"),
    "a huge repeat": ({"regex": "a{2,999999}"}, "repeats something 999999"),
    "a repeat beyond integers": ({"regex": "a{" + "9" * 4000 + "}"}, "repeats something 999999"),
    "an unsatisfiable regex": ({"regex": r"[^\x00-\U0010ffff]"}, "cannot be compiled"),
    "no choices": ({"choice": []}, "1 to 1024"),
    "an empty choice": ({"choice": ["a", ""]}, "none of them empty"),
    "a text for choices": ({"choice": "abc"}, "list of texts"),
    "many choices": ({"choice": [str(i) for i in range(2000)]}, "1 to 1024"),
    "long choices": ({"choice": ["x" * 70_000]}, "at most 65536"),
    "a bad grammar": ({"grammar": 'start: "a" b'}, r'at 1\(8\): unknown name: "b"'),
    "a rule that never ends": (
        {"grammar": "start: start"},
        "the grammar cannot be compiled: no text fits it: its parts exclude each other, or it has no end$",
    ),
    "terminals that exclude each other": ({"grammar": "start: A\nA: /a/ & /b/"}, "no text fits it"),
    "a regex that looks ahead": ({"regex": "(?=a)b"}, "the regex cannot be compiled: look-around, including"),
    "a regex with a boundary": ({"regex": r"\bfoo"}, r"compiled: word boundaries, .* are not supported: /\\bfoo/$"),
    "a regex that goes back": ({"regex": r"(a)\1"}, "the regex cannot be compiled: backreferences are not supported$"),
    "an unknown type, in one sentence": (
        {"json": {"type": "foo"}},
        "the JSON schema cannot be compiled: Invalid type: foo$",
    ),
    "an empty grammar": ({"grammar": ""}, "cannot be compiled"),
    "a huge grammar": ({"grammar": "start: " + '"a" ' * 100_000}, "at most 262144"),
    "a huge repeat in a grammar": ({"grammar": 'start: "a"{999999}'}, "repeats something"),
    "a stop of a rule": ({"grammar": 'start: a "b"\na[stop="x"]: /.*/'}, "attribute stop"),
    "a temperature of a rule": ({"grammar": "start: a\na[lazy, temperature=0.5]: /.*/"}, "attribute temperature"),
    "a stop of a rule that is inlined": ({"grammar": 'start: a "b"\n?a[stop="x"]: /.*/'}, "attribute stop"),
    "a repeat behind quotes in regexes": ({"grammar": 'start: /"/~999999 "x"'}, "repeats something 999999"),
    "a repeat behind a regex of two lines": ({"grammar": 'start: /a\n"/~999999 "x"'}, "repeats something 999999"),
    "a repeat behind an escaped backslash": ({"regex": r"\\x{999999}"}, "repeats something 999999"),
    "a huge tilde in a grammar": ({"grammar": 'start: "a" ~ 1..999999'}, "repeats something"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_served_is_refused_in_one_line(compiler, name):
    given, reason = WRONG[name]
    begin = time.process_time()
    with pytest.raises(RequestError, match=reason) as caught:
        compiler.compile(StructuredOutputsParams(**given))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert time.process_time() - begin < 5


def test_data_and_names_are_not_mistaken_for_keywords(compiler):
    of_json(compiler, {"const": {"$ref": "http://a.b", "minItems": 10**9}})
    of_json(compiler, {"properties": {"$ref": {"type": "string"}, "enum": SHORT, "minItems": SHORT}})
    compiler.compile(StructuredOutputsParams(grammar='start: "about ~20000 {99999}"'))
    compiler.compile(StructuredOutputsParams(grammar='start: "a" // ~20000 "{99999}\n'))
    compiler.compile(StructuredOutputsParams(regex=r"\x{12345}"))


SLOW_TO_READ = {
    "blank lines": "\n" * 100_000 + "x",
    "blanks in lines": " \n" * 50_000 + "x",
    "blanks in a repeat": "start: A{1," + " " * 100_000 + "x",
    "repeats left open": "start: A" + "{1," * 30_000,
    "an open string": 'start: "' + '\\"' * 50_000,
    "many open strings": 'start: "a\\' * 10_000,
    "an open regex": "start: /" + "\\/" * 50_000,
    "an open attribute": "a[" + "stop " * 20_000,
    "open escapes": "start: /" + r"\x{" * 30_000,
}


@pytest.mark.parametrize("name", SLOW_TO_READ)
def test_reading_a_grammar_takes_time_linear_in_its_length(name):
    begin = time.process_time()
    grammar_limits.check_lark(SLOW_TO_READ[name])
    assert time.process_time() - begin < 5  # a quarter of an hour where a character is tried for each one before it


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries({"json": st.dictionaries(KEYWORDS, JSON, max_size=5) | st.text()})
    | st.fixed_dictionaries({"regex": st.text() | st.text('ab()[]{}*+?|^$\\\\1,/\n"')})
    | st.fixed_dictionaries({"choice": st.lists(st.text())})
    | st.fixed_dictionaries({"grammar": st.text() | st.text('start: ab"()[]{}*+?|%/<>@\n').map("start: ".__add__)})
)
@settings(max_examples=200, deadline=None)
def test_whatever_comes_is_compiled_or_refused(given):
    with contextlib.suppress(RequestError):
        matcher = bundled_compiler().compile(StructuredOutputsParams(**given)).matcher()
        (mask,), _ = matcher.allowed()
        matcher.advance([int(mask.nonzero()[0, 0])])


def _doubled(schema: object, times: int) -> object:
    for _ in range(times):
        schema = {"allOf": [schema, schema]}
    return schema


BOMBS = {
    "doubling allOf": {"json": _doubled({"type": "integer"}, 9)},
    "fanning references": {
        "json": {
            "$defs": {f"d{i}": {"properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "lr"}} for i in range(40)}
            | {"d40": {"type": "null"}},
            "$ref": "#/$defs/d0",
        }
    },
    "a product of anyOf": {
        "json": {
            "allOf": [
                {"anyOf": [{"properties": {f"p{j}{i}": SHORT}, "required": [f"p{j}{i}"]} for i in range(4)]}
                for j in range(8)
            ]
        }
    },
    "a meeting of patterns": {"json": {"allOf": [{"pattern": f".*{c}.{{10,20}}{c}.*"} for c in "abcdefgh"]}},
    "many properties": {"json": {"properties": {f"p{i}": {"type": "integer", "minimum": i} for i in range(1000)}}},
    "repeats of repeats": {"regex": "((a{1000}){1000}){1000}"},
    "exponential states": {"regex": "(a|b)*a(a|b){2000}"},
    "optional repeats": {"regex": "(a?){5000}a{5000}"},
    "nested stars": {"regex": "((((a*)*)*)*)*b"},
    "rules of rules": {"grammar": 'start: a{1000}\na: b{1000}\nb: c{1000}\nc: "x"'},
    "terminals of terminals": {"grammar": 'start: A{1000}\nA: B{1000}\nB: C{1000}\nC: "x"'},
    "ambiguity": {"grammar": 'start: s\ns: s s | s s s | "a" | '},
    "a complement": {"grammar": "start: A\nA: ~(/(.|\\n)*(ab|cd).{12}(.|\\n)*/ & /(.|\\n)*x.{12}y(.|\\n)*/)"},
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_or_cost_little(compiler, name):
    begin = time.process_time()
    with contextlib.suppress(RequestError):
        matcher = compiler.compile(StructuredOutputsParams(**BOMBS[name])).matcher()  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            here = matcher.allowed()[0][0].nonzero()[:, 0]
            matcher.advance([int(here[torch.randint(len(here), (1,), generator=generator)])])
    assert time.process_time() - begin < 10
