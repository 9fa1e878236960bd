"""Records of every format as samples, and what is said of those that are none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokenizer.chats import careless_message, json_value, junk, text

from ling.finetune.formats import AlpacaFormat, ChatFormat
from ling.finetune.sample import SampleError
from ling.finetune.sources import default_format

HI = {"role": "user", "content": "hi"}
BYE = {"role": "assistant", "content": "bye"}
CALL = {"name": "f", "arguments": {"a": 1}}
TOOL = {"name": "f", "parameters": {}}
FORMATS = {name: default_format(name) for name in ("messages", "openai", "sharegpt", "alpaca")}


def read(record: Any, name: str = "messages") -> Any:
    return FORMATS[name].sample(record)


def test_the_published_form_is_taken_as_it_is() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1.50}'}, "index": 0}
    answer = BYE | {"reasoning_content": "why", "tool_calls": [call]}
    for key in ("messages", "conversations"):
        sample = read({key: [HI, answer, {"role": "tool", "content": "5", "tool_call_id": 0}], "tools": [TOOL]})
        assert sample.messages == [
            HI,
            BYE | {"reasoning_content": "why", "tool_calls": [{"name": "f", "arguments": '{"a": 1.50}'}]},
            {"role": "tool", "content": "5"},
        ]
        assert sample.tools == [TOOL]
        assert not sample.ignored_keys


def test_sharegpt_and_openai_spell_calls_as_text_and_have_their_tools_wrapped() -> None:
    turns = [
        ("human", "q"),
        ("function_call", '{"name": "f", "arguments": {"a": 1}}'),
        ("observation", "5"),
        ("gpt", "b"),
    ]
    record = {"conversations": [{"from": who, "value": what} for who, what in turns], "tools": '[{"name": "f"}]'}
    sample = read(record | {"system": "S"}, "sharegpt")
    assert [m["role"] for m in sample.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert sample.messages[2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert sample.tools == [{"type": "function", "function": {"name": "f"}}]
    spelt = {"role": "function_call", "content": '<think>\nw\n</think>[{"name": "f", "arguments": {}}]'}
    answer = read({"messages": [HI, spelt]}, "openai").messages[1]
    assert answer == {
        "role": "assistant", "content": "<think>\nw\n</think>", "tool_calls": [{"name": "f", "arguments": {}}],
    }  # fmt: skip


def test_alpaca_joins_instruction_and_input_and_keeps_the_history() -> None:
    sample = read({"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]], "system": "S"}, "alpaca")
    assert [(m["role"], m["content"]) for m in sample.messages] == [
        ("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "i\nx"), ("assistant", "o"),
    ]  # fmt: skip
    assert read({"instruction": "i", "input": "", "output": "o", "id": 7}, "alpaca").messages[0]["content"] == "i"


def test_a_system_message_beside_the_list_gives_way_to_the_first_message() -> None:
    form = ChatFormat(system="system")
    given_first = {"role": "system", "content": "first"}
    assert form.sample({"messages": [given_first, HI, BYE], "system": "beside"}).messages[0]["content"] == "first"
    assert form.sample({"messages": [HI, BYE], "system": ""}).messages[0] == HI


def test_weights_name_the_answers_that_are_not_learnt() -> None:
    messages = [HI, BYE | {"weight": 0}, HI, BYE | {"weight": 1}]
    assert read({"messages": messages}).unlearnt == {1}
    assert ChatFormat(system="system").sample({"messages": messages, "system": "S"}).unlearnt == {2}


def test_keys_that_nothing_reads_are_named_and_nulls_are_none() -> None:
    messages = [HI | {"name": "x", "mood": "good", "tool_calls": None}, BYE | {"refusal": None, "audio": {}}]
    sample = read({"messages": messages, "id": 3, "source": None, "tools": None})
    assert sample.ignored_keys == {"id", "messages.mood", "messages.audio"}


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert read({"messages": [HI | {"content": parts}, BYE]}).messages[0] == HI


@pytest.mark.parametrize(("given", "said"), [("on", "on"), ("off", "off"), (True, "on"), (False, "off"), (None, None)])
def test_a_record_says_whether_it_thinks(given: object, said: str | None) -> None:
    assert read({"messages": [HI, BYE], "thinking": given}).thinking == said


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ([], "damaged record", "must be an object, got list"),
        ({}, "no conversation", "the record has no messages or conversations"),
        ({"messages": [HI, BYE], "conversations": []}, "no conversation", "has both messages and conversations"),
        ({"messages": "x"}, "no conversation", "messages must be a list, got str"),
        ({"messages": [HI]}, "no conversation", "the list of messages has length 1; two are needed"),
        ({"messages": [BYE, HI]}, "begins with an answer", "message 0"),
        ({"messages": [HI, HI]}, "nothing to learn", "no answer"),
        ({"messages": [HI, BYE | {"weight": 0}]}, "nothing to learn", "weight of every answer"),
        ({"messages": [HI, BYE | {"weight": 0.5}]}, "damaged message", "weight of message 1 must be 0 or 1, got 0.5"),
        ({"messages": [HI, 3]}, "damaged message", "message 1 must be an object, got int"),
        ({"messages": [HI, {"content": "x"}]}, "damaged message", "message 1 has no text as its role"),
        ({"messages": [HI, BYE | {"role": "gpt"}]}, "unknown role", "has the role 'gpt'; known: system, user"),
        ({"messages": [HI | {"content": None}, BYE]}, "content is not text", "the content of message 0 is missing"),
        ({"messages": [HI | {"content": [{"type": "image_url"}]}, BYE]}, "content is not text", "not text"),
        ({"messages": [HI, BYE | {"content": {}}]}, "content is not text", "message 1 has a content of type dict"),
        ({"messages": [HI, BYE | {"reasoning_content": 3}]}, "content is not text", "reasoning_content of message 1"),
        ({"messages": [HI, BYE | {"tool_calls": "f"}]}, "damaged tool call", "must be a list, got str"),
        ({"messages": [HI, BYE | {"tool_calls": [3]}]}, "damaged tool call", "tool call 0 of message 1 must be an"),
        ({"messages": [HI, BYE | {"tool_calls": [{"name": "f"}]}]}, "damaged tool call", "must be an object or JSON"),
        (
            {"messages": [HI, BYE | {"tool_calls": [CALL | {"arguments": ""}]}]},
            "damaged tool call", "tool call 0 of message 1, as rendered, is no JSON: ''",
        ),
        ({"messages": [HI, BYE | {"tool_calls": [CALL | {"name": 'a"b'}]}]}, "damaged tool call", "is no JSON"),
        (
            {"messages": [HI, BYE | {"tool_calls": [CALL | {"arguments": "{}}\n</tool_call>, then"}]}]},
            "damaged tool call", "is no JSON",
        ),
        ({"messages": [HI, BYE], "tools": "[{]"}, "damaged tools", "the tools are text, but no JSON: Expecting"),
        ({"messages": [HI, BYE], "tools": [1]}, "damaged tools", "must be a list of objects"),
        ({"messages": [HI, BYE], "thinking": "maybe"}, "damaged record", "thinking must be on or off, got 'maybe'"),
        ({"messages": [HI, BYE], "thinking": []}, "damaged record", "thinking must be on or off, got []"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_left_out_with_its_reason(record: Any, reason: str, detail: str) -> None:
    with pytest.raises(SampleError) as refused:
        read(record)
    assert refused.value.reason == reason
    assert detail in refused.value.detail


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ({"output": "o"}, "the record has no instruction, input"),
        ({"instruction": "i"}, "output is missing"),
        ({"instruction": "i", "output": "o", "history": ["q"]}, "history must be a list of pairs"),
        ({"instruction": 3, "output": "o"}, "instruction of the record has a content of type int"),
    ],
)
def test_an_alpaca_record_without_its_parts_is_left_out(record: Any, detail: str) -> None:
    with pytest.raises(SampleError, match=detail):
        AlpacaFormat().sample(record)


anything = json_value | st.fixed_dictionaries(
    {},
    optional={
        "messages": junk | st.lists(careless_message, max_size=3),
        "conversations": st.lists(st.dictionaries(st.sampled_from(["from", "value"]), junk), max_size=3),
        "tools": junk, "thinking": junk, "instruction": junk, "input": junk, "output": junk, "system": junk,
        "history": junk | st.lists(st.lists(text | st.none(), max_size=2), max_size=2),
    },
)  # fmt: skip


@given(anything, st.sampled_from(sorted(FORMATS)))
def test_whatever_a_record_holds_it_is_a_sample_or_has_a_reason(record: Any, name: str) -> None:
    try:
        sample = FORMATS[name].sample(record)
    except SampleError:
        return
    assert len(sample.messages) >= 2
    assert all(isinstance(m["content"], str) for m in sample.messages)
