"""A stream says what the whole answer says, wherever it is cut, and says it as soon as it can."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling.server.answer_parser import (
    AnswerParser,
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)
from ling.tokenizer import format_tool_call, parse_answer

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
SAID = [ToolCallStart(0, "f"), ToolCallArguments(0, '{"a": 1}')]

pieces = st.sampled_from(
    [
        "\n", " ", "\u3000", "Hi 上海", "<", "\\", '"', '\\"', "{", "}", "[", "]", "🌸",
        "<think>", "</think>", "<think>\nwhy\n</think>\n\n", "<tool_call>", "</tool_call>", "</", "<tool",
        '{"name": "f"', '"arguments": {', "</tool_call>}}", CALL, CALL, f"\n{CALL}", CALL[:30], CALL[30:],
        CALL.replace("1", '"</tool_call>"'), CALL.replace("1", '"\\\\\\"} {"'), CALL.replace("1", "NaN"),
        format_tool_call("天气", {"在": ["上\n海", {}, [[]], "\\"]}), format_tool_call("g", '"{}"'),
    ]
)  # fmt: skip
written = st.lists(pieces | st.text(max_size=2), max_size=8).map("".join)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(written)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(pieces) * draw(st.booleans()) + text[at + draw(st.integers(0, 3)) :]
    return text


answers = written | mutated()


def read(*cut: str, tools: bool = True, reasoning: bool = True) -> list[Event]:
    parser = AnswerParser(tools=tools, reasoning=reasoning)
    return joined([event for piece in cut for event in parser.push(piece)] + parser.finish())


def joined(events: list[Event]) -> list[Event]:
    """Put neighbours of one kind together."""
    whole: list[Event] = []
    for event in events:
        assert isinstance(event, ToolCallStart) or event.text, f"an event that says nothing: {event}"
        if whole and type(event) is type(whole[-1]) and isinstance(event, ContentDelta | ReasoningDelta):
            whole[-1] = type(event)(whole[-1].text + event.text)
        else:
            whole.append(event)
    return whole


def as_parsed(events: list[Event]) -> tuple[str | None, str | None, list[tuple[str, str]]]:
    content = "".join(e.text for e in events if isinstance(e, ContentDelta))
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    starts = [e for e in events if isinstance(e, ToolCallStart)]
    arguments = [e for e in events if isinstance(e, ToolCallArguments)]
    assert [e.index for e in starts] == [e.index for e in arguments] == list(range(len(starts)))
    return content or None, reasoning or None, [(s.name, a.text) for s, a in zip(starts, arguments, strict=True)]


@settings(deadline=None, max_examples=250)
@given(answers, st.booleans(), st.booleans(), st.data())
def test_events_are_the_same_wherever_the_answer_is_cut(text, tools, reasoning, data):
    whole = read(text, tools=tools, reasoning=reasoning)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    assert read(*cut, tools=tools, reasoning=reasoning) == whole
    assert read(*text, tools=tools, reasoning=reasoning) == whole
    if len(text) < 60:
        for at in range(len(text)):
            assert read(text[:at], text[at:], tools=tools, reasoning=reasoning) == whole, at


@settings(deadline=None, max_examples=500)
@given(answers)
def test_events_say_what_the_whole_answer_says(text):
    parsed = parse_answer(text)
    calls = [(call.name, call.arguments_json) for call in parsed.tool_calls]
    assert as_parsed(read(text)) == (parsed.content, parsed.reasoning, calls)


@given(answers)
def test_without_tools_and_reasoning_every_answer_is_content_at_once(text):
    parser = AnswerParser(tools=False, reasoning=False)
    for character in text:
        assert parser.push(character) == [ContentDelta(character)]
    assert parser.finish() == []


def test_a_call_goes_out_with_its_last_character():
    parser = AnswerParser(tools=True, reasoning=True)
    assert parser.push("see") == [ContentDelta("see")]
    assert parser.push("\n" + CALL[:-1]) == []
    assert parser.push(CALL[-1]) == SAID
    assert parser.push("\n") == []
    assert parser.push(CALL) == [ToolCallStart(1, "f"), ToolCallArguments(1, '{"a": 1}')]
    assert parser.finish() == []


@pytest.mark.parametrize("text", ["<", "<tool_call", "\n<tool", "\n"])
def test_what_may_be_a_tag_is_held_back_and_nothing_else(text):
    parser = AnswerParser(tools=True, reasoning=False)
    assert parser.push("a" + text) == [ContentDelta("a")]
    assert parser.push("b<b\nb") == [ContentDelta(text + "b<b\nb")]
    assert parser.push(text) == []
    assert parser.finish() == [ContentDelta(text)]


@pytest.mark.parametrize("text", ["<tool_call>x", "<tool_call>\n{]}", '<tool_call>{"name": 1}', CALL[:-12] + "."])
def test_a_call_that_cannot_be_read_is_content_at_once_and_so_is_all_after_it(text):
    parser = AnswerParser(tools=True, reasoning=True)
    assert joined(parser.push(CALL)) == SAID
    assert joined(parser.push(f"\n{text}")) == [ContentDelta(f"\n{text}")]
    assert joined(parser.push(CALL)) == [ContentDelta(CALL)]


def test_reasoning_flows_and_loses_only_the_newlines_around_it():
    parser = AnswerParser(tools=True, reasoning=True)
    assert parser.push("\n<thi") == []
    assert parser.push("nk>\n\nwhy\n") == [ReasoningDelta("why")]
    assert parser.push("\n</thi") == []
    assert parser.push("n <tool_call>\n") == [ReasoningDelta("\n\n</thin <tool_call>")]
    assert parser.push("\n</think>\n") == []
    assert parser.push("\nyes") == [ContentDelta("yes")]


def test_reasoning_that_is_cut_short_is_reasoning():
    assert read("<think>\nwhy\n</thi") == [ReasoningDelta("why\n</thi")]
    assert read("<think>\nwhy\n\n") == [ReasoningDelta("why")]


def test_each_switch_leaves_the_other_side_alone():
    text = f"<think>why</think>so\n{CALL}"
    assert read(text, reasoning=False) == [ContentDelta("<think>why</think>so"), *SAID]
    assert read(text, tools=False) == [ReasoningDelta("why"), ContentDelta(f"so\n{CALL}")]
    assert read(f"<think>{CALL}", tools=False) == [ReasoningDelta(CALL)]


@pytest.mark.parametrize(
    ("head", "repeated"),
    [
        ("", "a"), ("", "\n"), ("", "<"), ("<think>", "\n"), ("", CALL), (CALL, " "), ("<tool_call>", "{"),
        ('<tool_call>{"', "\\"), ('<tool_call>{"name": "f", "arguments": {"a": "', "</tool_call>"),
    ],
)  # fmt: skip
def test_the_end_of_a_long_answer_takes_no_longer_than_its_start(head, repeated):
    text = head + repeated * (200_000 // len(repeated))
    parser = AnswerParser(tools=True, reasoning=True)
    events, seconds = [], []
    for at in range(0, len(text), 5_000):
        start = time.process_time()
        events += [event for character in text[at : at + 5_000] for event in parser.push(character)]
        seconds.append(time.process_time() - start)
    assert min(seconds[-11:-1]) < 2.5 * max(seconds[:5]), seconds
    start = time.process_time()
    events += parser.finish()
    assert time.process_time() - start < sum(seconds)
    assert as_parsed(events) == as_parsed(read(text))
