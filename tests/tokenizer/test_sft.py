"""The corners of the chat format that the golden chats do not reach (spec: tokenizer_chat.md 3)."""

import logging

import pytest

from ling.errors import RequestError
from ling.tokenizer import render, render_segments

HI = {"role": "user", "content": "hi"}
BYE = {"role": "assistant", "content": "bye"}
OFF = "<role>SYSTEM</role>detailed thinking off<|role_end|>"


def body(*messages):
    """Render without the header."""
    return render(list(messages)).removeprefix(OFF)


def answer(**fields):
    return body(HI, {"role": "assistant"} | fields).removeprefix(
        "<role>HUMAN</role>hi<|role_end|><role>ASSISTANT</role>"
    )


def test_segments_know_what_came_with_the_request():
    call = {"function": {"name": "NAME", "arguments": "ARGS"}}
    messages = [
        {"role": "system", "content": "SYS"},
        {"role": "user", "content": "USER"},
        {"role": "assistant", "content": "TEXT", "reasoning_content": "WHY", "tool_calls": [call]},
        {"role": "tool", "content": "RESULT"},
        {"role": "system", "content": "LATE"},
    ]
    segments = render_segments(messages, tools=[{"tool": 1}], add_generation_prompt=True)
    assert [s.text for s in segments if s.from_user] == [
        "SYS", '{"tool": 1}', "USER", "WHY", "TEXT", "NAME", "ARGS", "RESULT", "LATE",
    ]  # fmt: skip
    assert [s.text for s in segments if s.is_answer] == [
        "\n<think>\n", "WHY", "\n</think>\n\n", "TEXT", "\n", '<tool_call>\n{"name": "', "NAME",
        '", "arguments": ', "ARGS", "}\n</tool_call>", "<|role_end|>",
    ]  # fmt: skip
    assert all(s.text for s in segments)


def test_reasoning_is_only_kept_after_the_last_question():
    thought = {"role": "assistant", "content": "a", "reasoning_content": "why"}
    with_reasoning = "<role>ASSISTANT</role>\n<think>\nwhy\n</think>\n\na<|role_end|>"
    assert body(HI, thought).endswith(with_reasoning)
    assert body(HI, thought, HI).count("why") == 0
    assert body(HI, thought, {"role": "user", "content": "<tool_response>5</tool_response>"}).count("why") == 1
    assert body(HI, thought, {"role": "user", "content": "<tool_response>5"}).count("why") == 0


def test_without_a_question_no_reasoning_is_kept():
    thought = {"role": "assistant", "content": "a", "reasoning_content": "why"}
    assert body(thought, thought) == "<role>ASSISTANT</role>a<|role_end|>" * 2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content": "<think>\n\na\n\n</think>\n\n\nb"}, "\n<think>\na\n</think>\n\nb"),
        ({"content": "x<think>a</think>b</think>\nc"}, "\n<think>\na\n</think>\n\nc"),
        ({"content": "<think>x<think>a</think>b"}, "\n<think>\na\n</think>\n\nb"),
        ({"content": "a</think>b"}, "\n<think>\na\n</think>\n\nb"),
        ({"content": "<think>a"}, "<think>a"),
        ({"content": "<think>a</think>b", "reasoning_content": ""}, "<think>a</think>b"),
        ({"content": "<think>a</think>b", "reasoning_content": None}, "\n<think>\na\n</think>\n\nb"),
        (
            {"content": "<think>a</think>b", "reasoning_content": "r"},
            "\n<think>\nr\n</think>\n\n<think>a</think>b",
        ),
        ({"content": "\n\nb", "reasoning_content": "\nr \n"}, "\n<think>\nr \n</think>\n\nb"),
        ({"content": "\n\nb"}, "\n\nb"),
        ({"content": None}, ""),
        ({}, ""),
    ],
)
def test_reasoning_is_found_in_its_field_or_in_think_tags(fields, expected):
    assert answer(**fields) == expected + "<|role_end|>"


def test_tool_calls_are_parted_by_newlines():
    call = {"name": "f", "arguments": {}}
    spelt = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert answer(content=None, tool_calls=[call, call]) == f"{spelt}\n{spelt}<|role_end|>"
    assert answer(content="x", tool_calls=[call, call]) == f"x\n{spelt}\n{spelt}<|role_end|>"
    assert answer(content="", tool_calls=[]) == "<|role_end|>"
    assert answer(content="<think>r</think>", tool_calls=[call]).endswith(f"</think>\n\n{spelt}<|role_end|>")


def test_neighbouring_tool_messages_share_a_turn():
    tool = {"role": "tool", "content": "5"}
    response = "\n<tool_response>\n5\n</tool_response>"
    assert body(tool) == f"<role>OBSERVATION</role>{response}<|role_end|>"
    assert body(tool, tool, HI, tool) == (
        f"<role>OBSERVATION</role>{response}{response}<|role_end|><role>HUMAN</role>hi<|role_end|>"
        f"<role>OBSERVATION</role>{response}<|role_end|>"
    )


@pytest.mark.parametrize("role", ["HUMAN", "observation", "function", None, 3])
def test_other_roles_render_as_nothing_and_say_so_once(role, caplog, monkeypatch):
    monkeypatch.setattr("ling.log._said", set())
    with caplog.at_level(logging.WARNING):
        assert body(HI, {"role": role, "content": "x"}, {"role": role, "content": "x"}) == body(HI)
    assert [record.message for record in caplog.records] == [
        "a message whose role is none of system, user, assistant, tool is rendered as nothing, "
        "as in the published chat template"
    ]


def test_content_parts_of_answers_render_as_nothing_and_say_so(caplog, monkeypatch):
    monkeypatch.setattr("ling.log._said", set())
    with caplog.at_level(logging.WARNING):
        assert answer(content=[{"type": "text", "text": "x"}]) == "<|role_end|>"
    assert "message content of type list is rendered as nothing" in caplog.text


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [HI, BYE, {"role": "user", "content": ["x"]}],
            "message 2: the content of a user message must be a string",
        ),
        ([{"role": "user"}], "message 0: .* got NoneType. Join content parts"),
        ([{"role": "system", "content": None}], "message 0: the content of a system message"),
        (
            [HI, BYE | {"tool_calls": {}}, BYE | {"tool_calls": {"a": 1}}],
            "message 2: tool_calls must be a list",
        ),
        (
            [HI, BYE | {"tool_calls": ["f"]}],
            "message 1, tool call 0 must be an object with `name` and `arguments`",
        ),
        ([BYE | {"tool_calls": [{"name": "f"}]}], "message 0, tool call 0 must be an object with `name` and"),
        ([BYE | {"tool_calls": [{"function": "f"}]}], "message 0, tool call 0 must be an object"),
        ([BYE | {"tool_calls": [{"name": None, "arguments": ""}]}], "tool call 0: the name must be a string"),
        (
            [BYE | {"tool_calls": [{"name": "f", "arguments": {1j}}]}],
            "arguments of message 0, tool call 0 cannot be",
        ),
    ],
)
def test_what_cannot_be_rendered_is_refused_with_its_place(messages, message):
    with pytest.raises(RequestError, match=message):
        render(messages)
