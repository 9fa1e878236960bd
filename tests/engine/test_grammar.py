"""Masks of structured output: whatever is chosen among them ends and has the form that was asked for."""

import json
import re
import sys

import pytest
import torch
from tests.engine.grammar_walks import (
    PAD_ROWS,
    accepts,
    bundled_compiler,
    bundled_tokenizer,
    conforms,
    ids_of,
    of_json,
    walk,
)

from ling.engine import grammar as grammar_module
from ling.engine.grammar import GrammarCompiler
from ling.engine.request import StructuredOutputsParams
from ling.errors import QueueFullError, RequestError

SHORT = {"type": "string", "maxLength": 6}
SCHEMAS = {
    "nested objects": {
        "type": "object",
        "properties": {
            "name": SHORT,
            "inner": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        },
        "required": ["name", "inner"],
        "additionalProperties": False,
    },
    "array of numbers": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 5},
    "range": {"type": "array", "items": {"type": "integer", "minimum": -7, "maximum": 1200}, "maxItems": 4},
    "enum": {"enum": ["red", "gr\u00fcn", 3, 4.5, None, True, ["a", {"b": 1}]]},
    "unicode": {"type": "string", "minLength": 3, "maxLength": 12},
    "unicode names": {"type": "object", "properties": {'\u540d\u524d "x"': {"type": "boolean"}}, "maxProperties": 0}
    | {"maxProperties": 1, "required": ['\u540d\u524d "x"']},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"},
    "anyOf": {"anyOf": [{"type": "null"}, SHORT, {"type": "array", "items": {"type": "boolean"}}]},
    "allOf": {"allOf": [{"type": "object", "properties": {"a": SHORT}, "required": ["a"]}, {"maxProperties": 2}]}
    | {"properties": {"a": {"enum": ["x", "y"]}}, "additionalProperties": {"type": "null"}},
    "several types": {"type": ["integer", "null", "boolean"]},
    "list": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "tree": {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
        "required": ["children"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def tokenizer():
    return bundled_tokenizer()


@pytest.fixture
def compiler():
    return bundled_compiler()


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_random_walk_through_a_schema_ends_and_conforms(compiler, tokenizer, name):
    grammar = of_json(compiler, SCHEMAS[name])
    for seed in range(8):
        text = walk(grammar, tokenizer, seed)
        assert conforms(json.loads(text), SCHEMAS[name]), text
        assert re.fullmatch(r"\S.*\S|\S", text), repr(text)  # one line, nothing around it


@pytest.mark.parametrize("schema", [{}, True, "true", '{"title": "anything"}'])
def test_a_schema_without_demands_gives_any_value(compiler, tokenizer, schema):
    grammar = of_json(compiler, schema)
    for text in ('{"a": [1, {"b": null}]}', "[]", '"x"', "-1.5e3", "true"):
        assert accepts(grammar, tokenizer, text), text
    for seed in range(2):
        json.loads(walk(grammar, tokenizer, seed, most_tokens=20_000))


def test_json_object_gives_objects_only(compiler, tokenizer):
    grammar = compiler.compile(StructuredOutputsParams(json_object=True))
    assert accepts(grammar, tokenizer, '{"a": [1, 2], "b":{}}')
    for text in ("[]", "1", '"x"'):
        assert not accepts(grammar, tokenizer, text), text


def test_a_schema_may_come_as_its_text(compiler, tokenizer):
    assert accepts(of_json(compiler, '{"type": "integer"}'), tokenizer, "12")


def test_a_regex_is_matched_as_a_whole(compiler, tokenizer):
    for regex in (r"[a-c]{2,4}/\d+", r"^(yes|no)$", r"[a-z]+@[a-z]{3,9}\.(com|org)", "\u00fc?x\n\ty"):
        grammar = compiler.compile(StructuredOutputsParams(regex=regex))
        for seed in range(6):
            text = walk(grammar, tokenizer, seed)
            assert re.fullmatch(regex, text), (regex, text)


CHOICES = ["a", "ab", 'a"b\\', "line\nbreak", "\u4f60\u597d", "/x/", "{1}", " "]


def test_choice_gives_every_text_and_no_other(compiler, tokenizer):
    grammar = compiler.compile(StructuredOutputsParams(choice=CHOICES))
    assert all(accepts(grammar, tokenizer, text) for text in CHOICES)
    assert not any(accepts(grammar, tokenizer, text) for text in ("", "b", "aa", "abb"))
    assert {walk(grammar, tokenizer, seed) for seed in range(200)} == set(CHOICES)


def test_a_lark_grammar_is_followed(compiler, tokenizer):
    lark = 'start: sum\nsum: NUMBER ("+" NUMBER){0,3}\nNUMBER: /[1-9][0-9]{0,2}/'
    grammar = compiler.compile(StructuredOutputsParams(grammar=lark))
    for seed in range(10):
        assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2}){0,3}", walk(grammar, tokenizer, seed))


def test_stop_ids_are_allowed_exactly_where_the_text_may_end(compiler, tokenizer):
    matcher = compiler.compile(StructuredOutputsParams(choice=["a", "ab"])).matcher()
    stops = list(tokenizer.stop_ids)
    assert len(stops) == 2
    masks, accepted = matcher.allowed(ids_of(tokenizer, "ab"))
    assert accepted == 2
    assert not masks[0][stops].any()
    assert masks[1][stops].all()
    assert masks[1].sum() > len(stops)
    assert masks[2].nonzero()[:, 0].tolist() == stops
    assert not matcher.finished
    matcher.advance([*ids_of(tokenizer, "ab"), stops[1]])
    assert matcher.finished
    assert matcher.allowed()[0][0].nonzero()[:, 0].tolist() == stops


def test_masks_cover_the_models_vocabulary_and_no_special_or_padding_row(compiler, tokenizer):
    (mask,), _ = compiler.compile(StructuredOutputsParams(regex="(?s:.*)")).matcher().allowed()
    assert (mask.shape, mask.dtype) == ((tokenizer.vocab_size + PAD_ROWS,), torch.bool)
    assert not mask[tokenizer.vocab_size :].any()
    special = [id for id in range(tokenizer.vocab_size) if tokenizer.is_special(id)]
    assert {id for id in special if mask[id]} == set(tokenizer.stop_ids)
    assert mask.sum() > 1000


@pytest.mark.parametrize("kind", ["json", "regex", "choice"])
def test_masks_after_drafts_are_those_after_advancing(compiler, tokenizer, kind):
    params = {
        "json": StructuredOutputsParams(json=SCHEMAS["nested objects"]),
        "regex": StructuredOutputsParams(regex="[a-z]{1,5}( [0-9]{1,3}){2}"),
        "choice": StructuredOutputsParams(choice=CHOICES),
    }[kind]
    grammar = compiler.compile(params)
    for seed in range(3):
        ids = [*ids_of(tokenizer, walk(grammar, tokenizer, seed)), tokenizer.stop_ids[0]]
        drafted, stepped = grammar.matcher(), grammar.matcher()
        begin = len(ids) // 3
        drafted.advance(ids[:begin])
        stepped.advance(ids[:begin])
        masks, accepted = drafted.allowed(ids[begin:])
        assert accepted == len(ids) - begin
        for mask, id in zip(masks, [*ids[begin:], None]):
            assert mask.equal(stepped.allowed()[0][0])
            if id is not None:
                stepped.advance([id])
        assert not drafted.finished
        again, _ = drafted.allowed(ids[begin:])
        assert all(map(torch.equal, masks, again))


def test_drafts_are_cut_at_the_first_that_is_not_allowed(compiler, tokenizer):
    matcher = of_json(compiler, {"type": "integer"}).matcher()
    stop = tokenizer.stop_ids[0]
    good, bad = ids_of(tokenizer, "12"), ids_of(tokenizer, "x")
    beyond = tokenizer.vocab_size + PAD_ROWS
    for drafts, accepted in (
        ([*good, *bad, *good], 2),
        (bad, 0),
        ([stop], 0),
        ([*good, stop, *good], 3),
        ([*good, tokenizer.vocab_size], 2),
        ([beyond], 0),
        ([-1], 0),
        ([], 0),
    ):
        masks, v = matcher.allowed(drafts)
        assert (v, len(masks)) == (accepted, accepted + 1), drafts
    (before,), _ = matcher.allowed()
    assert before.equal(matcher.allowed(good)[0][0])


def test_masks_are_computed_once_between_two_advances(compiler, tokenizer, monkeypatch):
    matcher = of_json(compiler, {"type": "integer"}).matcher()
    computed = []
    real = matcher._mask
    monkeypatch.setattr(matcher, "_mask", lambda: computed.append(1) or real())
    ids = ids_of(tokenizer, "1234")
    for i in range(5):
        matcher.allowed(ids[:i])
    assert len(computed) == 5
    matcher.advance(ids[:2])
    (mask,), _ = matcher.allowed()
    assert len(computed) == 6
    assert mask.equal(real())


def test_a_token_that_is_not_allowed_is_refused(compiler, tokenizer):
    matcher = of_json(compiler, {"type": "integer"}).matcher()
    with pytest.raises(RequestError, match="does not follow the grammar"):
        matcher.advance(ids_of(tokenizer, "x"))


def test_answers_do_not_disturb_each_other(compiler, tokenizer):
    grammar = compiler.compile(StructuredOutputsParams(choice=["ab", "cd"]))
    one, two = grammar.matcher(), grammar.matcher()
    one.advance(ids_of(tokenizer, "ab"))
    assert two.allowed(ids_of(tokenizer, "cd"))[1] == 2
    assert one.allowed()[0][0].sum() == 2


def test_a_compilation_that_hangs_fails_its_own_request_and_not_others(tokenizer, monkeypatch):
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, deadline_seconds=0.05)
    compiler.compile(StructuredOutputsParams(choice=["quick"]))
    real = grammar_module._compile
    hang = grammar_module.threading.Event()
    monkeypatch.setattr(grammar_module, "_compile", lambda *args: hang.wait(20) and real(*args))
    for i in range(grammar_module.MOST_COMPILING):
        with pytest.raises(RequestError, match=r"the regex took longer than 0\.05 s to compile"):
            compiler.compile(StructuredOutputsParams(regex=f"a{i}"))
    with pytest.raises(QueueFullError, match="4 grammars are being compiled"):
        compiler.compile(StructuredOutputsParams(regex="b"))
    compiler.compile(StructuredOutputsParams(choice=["quick"]))  # from the cache
    hang.set()
    monkeypatch.setattr(grammar_module, "_compile", real)
    compiler._deadline_seconds = 5
    compiler.compile(StructuredOutputsParams(regex="b"))


def test_compiled_grammars_are_kept_within_bounds(tokenizer, monkeypatch):
    monkeypatch.setattr(grammar_module, "MOST_CACHED", 3)
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    regexes = ["a", "b", "c", "d"]
    grammars = [compiler.compile(StructuredOutputsParams(regex=regex)) for regex in regexes[:3]]
    assert compiler.compile(StructuredOutputsParams(regex="a")) is grammars[0]
    compiler.compile(StructuredOutputsParams(regex="d"))
    assert compiler.compile(StructuredOutputsParams(regex="a")) is grammars[0]
    assert compiler.compile(StructuredOutputsParams(regex="b")) is not grammars[1]  # the one used longest ago
    monkeypatch.setattr(grammar_module, "MOST_CACHED_BYTES", 10)
    compiler.compile(StructuredOutputsParams(regex="e"))
    assert (len(compiler._cache), compiler._cached_bytes) == (0, 0)


def test_without_llguidance_the_request_is_told_what_to_install(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install ling\[serve\]"):
        GrammarCompiler(tokenizer, tokenizer.vocab_size).compile(StructuredOutputsParams(json_object=True))
