"""What the renderer writes, the parser reads; what does not follow the grammar comes back untouched."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling.tokenizer import ParsedAnswer, ToolCall, format_tool_call, parse_answer, render
from tests.tokenizer import chats

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
F = ToolCall("f", {"a": 1})

names = st.from_regex(r"[\w.-]+", fullmatch=True)
arguments = st.dictionaries(chats.text, chats.json_value, max_size=3)
without_tags = chats.text.filter(lambda text: "<t" not in text and "</t" not in text)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", ParsedAnswer(None)),
        ("hello\n", ParsedAnswer("hello\n")),
        (CALL, ParsedAnswer(None, None, (F,))),
        (f"\n{CALL}", ParsedAnswer(None, None, (F,))),
        (f"let me see\n{CALL}", ParsedAnswer("let me see", None, (F,))),
        (f"a\n\n{CALL}\n{CALL}\n", ParsedAnswer("a\n", None, (F, F))),
        (CALL.replace("\n", ""), ParsedAnswer(None, None, (F,))),
        (CALL.replace("\n", " \n "), ParsedAnswer(None, None, (F,))),
        (CALL.replace('{"a": 1}', '"{\\"a\\": 1}"'), ParsedAnswer(None, None, (F,))),
        (CALL.replace('"name"', '"id": 7, "name"'), ParsedAnswer(None, None, (F,))),
        ("<think>\nwhy\n</think>\n\nans", ParsedAnswer("ans", "why")),
        ("\n<think>\nwhy\n</think>\n\n" + CALL, ParsedAnswer(None, "why", (F,))),
        ("<think></think>ans", ParsedAnswer("ans")),
        ("<think>a</think>b</think>c", ParsedAnswer("b</think>c", "a")),
        ("<think>cut sho", ParsedAnswer(None, "cut sho")),
        (f"<think>{CALL}</think>ans", ParsedAnswer("ans", CALL)),
        ("so <think>a</think>", ParsedAnswer("so <think>a</think>")),
        ("\n\n<think>a</think>", ParsedAnswer("\n\n<think>a</think>")),
    ],
)
def test_answers_are_split_by_the_grammar(text, parsed):
    assert parse_answer(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        CALL.removesuffix("</tool_call>"),
        f"<tool_call>{CALL}",
        f"the tag <tool_call> opens a call:\n{CALL}",
        CALL.replace('"f"', "f"),
        CALL.replace('"f"', "null"),
        CALL.replace('"f"', '""'),
        CALL.replace('"f"', '"\\ud800"'),
        CALL.replace('{"a": 1}', "[1]"),
        CALL.replace('{"a": 1}', "null"),
        CALL.replace('{"a": 1}', '"a"'),
        CALL.replace('{"a": 1}', '"[1]"'),
        CALL.replace('{"a": 1}', '{"a": NaN}'),
        CALL.replace('{"a": 1}', '{"a": ' + "[" * 100_000),
        CALL.replace('{"a": 1}', '{"a": ' + "1" * 10_000 + "}"),
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        '<tool_call>\n["f", {}]\n</tool_call>',
        "<tool_call>\n\n</tool_call>",
    ],
)
def test_malformed_calls_come_back_as_text(text):
    assert parse_answer(text) == ParsedAnswer(text, None, (), malformed=True)
    assert parse_answer(f"<think>a</think>{text}") == ParsedAnswer(text, "a", (), malformed=True)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (f"ok\n{CALL} and then", ParsedAnswer("ok and then", None, (F,), malformed=True)),
        (f"{CALL}\n{CALL[:-1]}", ParsedAnswer(f"\n{CALL[:-1]}", None, (F,), malformed=True)),
        (f"{CALL}<tool_call>", ParsedAnswer("<tool_call>", None, (F,), malformed=True)),
        (f"{CALL}\n<tool_", ParsedAnswer("\n<tool_", None, (F,), malformed=True)),
        (f"{CALL}{CALL}.{CALL}", ParsedAnswer(f".{CALL}", None, (F, F), malformed=True)),
        (f"a\n{CALL}b<tool_call>{CALL}", ParsedAnswer(f"ab<tool_call>{CALL}", None, (F,), malformed=True)),
    ],
)
def test_calls_stand_and_from_the_first_text_that_is_none_everything_is_content(text, parsed):
    assert parse_answer(text) == parsed


@settings(deadline=None)
@given(names, arguments)
def test_formatted_calls_read_back(name, arguments):
    text = format_tool_call(name, arguments)
    call = ToolCall(name, arguments)
    assert parse_answer(text) == ParsedAnswer(None, None, (call,))
    assert format_tool_call(name, call.arguments_json) == text
    assert json.loads(call.arguments_json) == arguments


@settings(deadline=None)
@given(without_tags, without_tags, st.lists(st.tuples(names, arguments), max_size=3))
def test_rendered_answers_read_back(reasoning, content, calls):
    content, reasoning = content.strip("\n"), reasoning.strip("\n")
    spelt = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": spelt},
    ]
    turn = render(messages).split("<role>ASSISTANT</role>", 1)[1].removesuffix("<|role_end|>")
    expected = tuple(ToolCall(name, arguments) for name, arguments in calls)
    assert parse_answer(turn) == ParsedAnswer(content or None, reasoning or None, expected)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*chats.PLAIN_PIECES, CALL, CALL[:20], CALL[20:], '{"name": "f"'])).map("".join))
def test_no_text_breaks_the_parser(text):
    parsed = parse_answer(text)
    assert not parsed.malformed or parsed.tool_calls or text.endswith(parsed.content)
