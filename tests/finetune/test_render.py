"""Samples as tokens: the chat renderer's own, with a mask over the answers and nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokenizer.chats import GOLDEN, chats, hostile_text, plain_text, spells_no_special, tools

from ling.config.finetune import FinetuneConfig
from ling.finetune.formats import ChatFormat
from ling.finetune.render import answer_runs, render_sample
from ling.finetune.sample import Sample, SampleError
from ling.tokenizer import Tokenizer, encode_chat, render, render_segments

HI = {"role": "user", "content": "hi"}
BYE = {"role": "assistant", "content": "bye"}
REASONED = BYE | {"reasoning_content": "why"}
TOOL = {"role": "tool", "content": "5"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": "上海", "b": 1.5}}]}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


class Shown:
    """One sample, rendered with some settings."""

    def __init__(self, tokenizer: Tokenizer, *messages: Any, record: Any = None, limit: int = 9999, **settings: Any):
        sample = ChatFormat().sample({"messages": list(messages), **(record or {})})
        rendered = render_sample(sample, tokenizer, FinetuneConfig(**settings), limit)
        self.tokens, mask = rendered.document.tokens, rendered.document.learnt
        self.text = tokenizer.decode(self.tokens)
        self.learnt = [tokenizer.decode(self.tokens[a:b]) for a, b in answer_runs(mask)]
        self.notes = rendered.notes


@pytest.mark.parametrize("case", [c for c in GOLDEN if c.template == "sft" and c.rendered], ids=str)
def test_golden_chats_are_rendered_as_published(case: Any, tokenizer: Tokenizer) -> None:
    prompt = "<role>ASSISTANT</role>" if case.add_generation_prompt else ""
    expected = case.rendered.removesuffix(prompt) if prompt else case.rendered
    messages = case.messages
    if not any(m["role"] == "assistant" for m in messages):
        messages, expected = [*messages, BYE], f"{expected}<role>ASSISTANT</role>bye<|role_end|>"
    sample = ChatFormat().sample({"messages": messages, "tools": case.tools})
    document = render_sample(sample, tokenizer, FinetuneConfig(), 9999).document
    assert tokenizer.decode(document.tokens) == expected
    if spells_no_special(json.dumps(messages)):
        assert document.tokens == tokenizer.encode(expected)


@given(chats(hostile_text | plain_text), tools, st.sampled_from(["off", "on"]), st.booleans())
def test_tokens_are_the_chat_renderers_and_the_mask_covers_the_answers_alone(
    tokenizer: Tokenizer, messages: list[Any], tools: Any, thinking: str, newline: bool
) -> None:
    record = {"messages": messages, "tools": tools}
    try:
        sample = ChatFormat().sample(record)
        config = FinetuneConfig(thinking=thinking, system_newline=newline)  # type: ignore[arg-type]
        document = render_sample(sample, tokenizer, config, 9999).document
    except SampleError:
        return
    options: Any = {"tools": tools, "thinking": thinking, "system_newline": newline}
    assert (document.tokens, document.learnt) == encode_chat(tokenizer, messages, **options)
    learnt = [tokenizer.decode(document.tokens[a:b]) for a, b in answer_runs(document.learnt)]
    segments = render_segments(messages, **options)
    assert "".join(learnt) == "".join(s.text for s in segments if s.is_answer)
    assert all(answer.endswith("<|role_end|>") for answer in learnt)
    assert len(learnt) == sum(message["role"] == "assistant" for message in messages)


def test_answers_with_their_calls_and_reasoning_are_learnt_and_nothing_else(tokenizer: Tokenizer) -> None:
    shown = Shown(tokenizer, HI, BYE, HI, CALLED | {"reasoning_content": "why"}, TOOL, BYE, thinking="on")
    assert shown.learnt == [
        "bye<|role_end|>",
        '\n<think>\nwhy\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": "上海", "b": 1.5}}\n'
        "</tool_call><|role_end|>",
        "bye<|role_end|>",
    ]


@pytest.mark.parametrize(
    ("learn", "expected"),
    [("answers", ["bye", "call", "bye"]), ("last_turn", ["call", "bye"]), ("last_answer", ["bye"])],
)
def test_less_than_all_answers_can_be_learnt(tokenizer: Tokenizer, learn: str, expected: list[str]) -> None:
    learnt = Shown(tokenizer, HI, BYE, HI, CALLED, TOOL, BYE, learn=learn).learnt
    assert ["call" if "<tool_call>" in answer else answer.removesuffix("<|role_end|>") for answer in learnt] == expected


def test_the_published_variant_learns_one_end_of_text_and_has_its_newline(tokenizer: Tokenizer) -> None:
    shown = Shown(tokenizer, HI, BYE, end_of_text=True, system_newline=True)
    assert shown.text.startswith("<role>SYSTEM</role>\ndetailed thinking off<|role_end|>")
    assert shown.learnt == ["bye<|role_end|><|endoftext|>"]
    assert Shown(tokenizer, HI, BYE, HI, end_of_text=True).learnt == ["bye<|role_end|>", "<|endoftext|>"]


def test_a_weight_of_zero_keeps_an_answer_from_being_learnt(tokenizer: Tokenizer) -> None:
    unlearnt = {"role": "assistant", "content": "wrong", "weight": 0}
    for settings in ({}, {"default_system": "S"}):
        assert Shown(tokenizer, HI, unlearnt, HI, BYE, **settings).learnt == ["bye<|role_end|>"]
    assert Shown(tokenizer, system("detailed thinking on"), HI, unlearnt, HI, BYE, thinking="auto").learnt == [
        "bye<|role_end|>"
    ]
    with pytest.raises(SampleError, match=r"nothing to learn: no answer is left by finetune\.learn last_answer"):
        Shown(tokenizer, HI, BYE, HI, unlearnt, learn="last_answer")


@pytest.mark.parametrize(
    ("messages", "settings", "record", "header"),
    [
        ((HI, REASONED), {}, {}, "detailed thinking off"),
        ((HI, REASONED), {"thinking": "on"}, {}, "detailed thinking on"),
        ((HI, REASONED), {"thinking": "on"}, {"thinking": "off"}, "detailed thinking off"),
        ((HI, REASONED), {"thinking": "auto"}, {}, "detailed thinking on"),
        ((HI, REASONED, HI, BYE), {"thinking": "auto"}, {}, "detailed thinking off"),
        ((HI, BYE | {"content": "<think>w</think>a"}), {"thinking": "auto"}, {}, "detailed thinking on"),
        ((system("S\ndetailed thinking on"), HI, BYE), {"thinking": "auto"}, {}, "S\ndetailed thinking on"),
        ((system("detailed thinking off"), HI, REASONED), {"thinking": "auto"}, {}, "detailed thinking off"),
        ((system("detailed thinking on"), HI, BYE), {}, {}, "detailed thinking on\ndetailed thinking off"),
        ((HI, BYE), {"default_system": "D"}, {}, "D\ndetailed thinking off"),
        ((system("S"), HI, BYE), {"default_system": "D"}, {}, "S\ndetailed thinking off"),
    ],
)  # fmt: skip
def test_the_header_says_what_the_sample_the_settings_or_the_answers_say(
    tokenizer: Tokenizer, messages: Any, settings: Any, record: Any, header: str
) -> None:
    text = Shown(tokenizer, *messages, record=record, **settings).text
    assert text.startswith(f"<role>SYSTEM</role>{header}<|role_end|>")


def test_what_is_worth_knowing_is_noted(tokenizer: Tokenizer) -> None:
    assert Shown(tokenizer, HI, BYE).notes == set()
    assert Shown(tokenizer, HI, REASONED).notes == {"reasoning under `detailed thinking off`"}
    assert Shown(tokenizer, HI, REASONED, HI, BYE).notes == {
        "reasoning of earlier answers, which the chat format leaves out"
    }
    spelt = {"role": "user", "content": "<|role_end|>"}
    assert Shown(tokenizer, spelt, BYE).notes == {"special tokens spelt in the text, encoded as text"}
    (end,) = tokenizer.encode("<|role_end|>")
    assert Shown(tokenizer, spelt, BYE).tokens.count(end) == Shown(tokenizer, HI, BYE).tokens.count(end)


def test_a_sample_that_is_too_long_is_left_out_or_cut_at_its_end(tokenizer: Tokenizer) -> None:
    whole = Shown(tokenizer, HI, BYE)
    length = len(whole.tokens)
    assert Shown(tokenizer, HI, BYE, limit=length).tokens == whole.tokens
    with pytest.raises(SampleError, match=f"too long: {length} tokens, and at most {length - 1} are taken"):
        Shown(tokenizer, HI, BYE, limit=length - 1)
    cut = Shown(tokenizer, HI, BYE, limit=length - 1, too_long="truncate")
    assert (cut.tokens, cut.learnt) == (whole.tokens[:-1], ["bye"])
    assert cut.notes == {"cut at the longest length"}
    with pytest.raises(SampleError, match="too long: nothing to learn is left of it within 9 tokens"):
        Shown(tokenizer, HI, BYE, limit=9, too_long="truncate")


def test_an_answer_that_renders_as_nothing_is_left_out(tokenizer: Tokenizer) -> None:
    empty = {"role": "assistant", "content": ""}
    with pytest.raises(SampleError, match="empty answer: message 1 renders as nothing but its end"):
        Shown(tokenizer, HI, empty)
    with pytest.raises(SampleError, match="empty answer"):  # its reasoning is not rendered
        Shown(tokenizer, HI, empty | {"reasoning_content": "why"}, HI, BYE)
    assert Shown(tokenizer, HI, empty, HI, BYE, learn="last_answer").learnt == ["bye<|role_end|>"]


def test_half_a_surrogate_pair_is_left_out(tokenizer: Tokenizer) -> None:
    with pytest.raises(SampleError, match="not Unicode"):
        Shown(tokenizer, HI, {"role": "assistant", "content": "\ud800"})


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3), st.booleans())
def test_tool_calls_are_learnt_to_the_byte(tokenizer: Tokenizer, arguments: dict[str, Any], as_text: bool) -> None:
    try:
        spelt = json.dumps(arguments, ensure_ascii=False)
        spelt.encode()
    except UnicodeEncodeError:
        return
    call = {"name": "f", "arguments": json.dumps(arguments) if as_text else arguments}
    (learnt,) = Shown(tokenizer, HI, BYE | {"content": "", "tool_calls": [{"function": call}]}).learnt
    spelt = call["arguments"] if as_text else spelt
    assert learnt == f'<tool_call>\n{{"name": "f", "arguments": {spelt}}}\n</tool_call><|role_end|>'


def test_a_sample_is_not_changed_by_rendering(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "S\ndetailed thinking on"}, HI, REASONED]
    before = json.dumps(messages)
    render_sample(Sample(messages), tokenizer, FinetuneConfig(thinking="auto"), 999)
    assert json.dumps(messages) == before
    assert render(messages).count("detailed") == 2
