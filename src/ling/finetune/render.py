"""Samples as tokens, through the one chat renderer, with a mask of what is learnt.

    <role>HUMAN</role>hi<|role_end|><role>ASSISTANT</role>hello<|role_end|>
                                                          ^^^^^^^^^^^^^^^^^ learnt

An answer is everything the renderer marks as one: reasoning, text, tool calls and the end of turn. Each assistant
message is one run of marked tokens, so runs and messages can be told off against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ling.config.finetune import FinetuneConfig
from ling.data.documents import Document
from ling.errors import DataError, RequestError
from ling.finetune.sample import Sample, SampleError
from ling.tokenizer import SPECIAL_TOKENS, Segment, Tokenizer, encode_segments, render_segments
from ling.tokenizer.sft import last_query_index
from ling.tokenizer.wording import THINK_CLOSE, THINKING

Note = Literal[
    "cut at the longest length",
    "reasoning under `detailed thinking off`",
    "reasoning of earlier answers, which the chat format leaves out",
    "special tokens spelt in the text, encoded as text",
]
"""What is worth knowing of samples that are learnt from."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A document for the trainer, and what is to be told of it."""

    document: Document
    notes: frozenset[Note] = frozenset()


def render_sample(sample: Sample, tokenizer: Tokenizer, config: FinetuneConfig, max_tokens: int) -> Rendered:
    """Render one sample in at most `max_tokens` tokens. Raises SampleError."""
    sample, thinking = _settle(sample, config)
    try:
        segments = render_segments(
            sample.messages, tools=sample.tools, thinking=thinking, system_newline=config.system_newline
        )
        tokens, is_answer = encode_segments(tokenizer, segments)
    except RequestError as error:
        raise SampleError("damaged message", str(error)) from None
    except DataError as error:
        raise SampleError("not Unicode", str(error)) from None
    learnt = _learnt(sample, is_answer, config)
    if config.end_of_text:
        tokens.append(tokenizer.eod_id)
        learnt.append(True)
    notes = _notes(sample, segments, thinking)
    if len(tokens) > max_tokens:
        if config.too_long == "skip":
            raise SampleError("too long", f"{len(tokens):,} tokens, and at most {max_tokens:,} are taken")
        tokens, learnt = tokens[:max_tokens], learnt[:max_tokens]
        notes.add("cut at the longest length")
        if not any(learnt):
            raise SampleError("too long", f"nothing to learn is left of it within {max_tokens:,} tokens")
    return Rendered(Document(tokens, learnt), frozenset(notes))


def answer_runs(is_answer: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the half-open intervals of the runs of True: one for each assistant message, in their order."""
    edges = [i for i in range(len(is_answer) + 1) if _at(is_answer, i) != _at(is_answer, i - 1)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at(mask: Sequence[bool], index: int) -> bool:
    return 0 <= index < len(mask) and mask[index]


def _settle(sample: Sample, config: FinetuneConfig) -> tuple[Sample, Literal["off", "on"]]:
    """Put the default system message in, and decide on the thinking line of the header.

    The sample's own word goes before the configuration's. Under `auto`, a system message that ends in the line itself
    (as LLaMA-Factory takes it) counts as such a word and loses the line; otherwise it is on if an answer will show
    reasoning.
    """
    messages, unlearnt = list(sample.messages), sample.unlearnt
    if config.default_system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": config.default_system})
        unlearnt = frozenset(index + 1 for index in unlearnt)
    thinking = sample.thinking
    if thinking is None and config.thinking != "auto":
        thinking = config.thinking
    if thinking is None and messages[0]["role"] == "system":
        before, newline, last = messages[0]["content"].rpartition("\n")
        said: list[Literal["off", "on"]] = ["off", "on"]
        thinking = next((word for word in said if last == THINKING[word]), None)
        if thinking is not None:
            messages[0] = {"role": "system", "content": before}
            if not newline:
                del messages[0]
                unlearnt = frozenset(index - 1 for index in unlearnt)
    if thinking is None:
        query = last_query_index(messages)
        thinking = "on" if any(_has_reasoning(message) for message in messages[query + 1 :]) else "off"
    return replace(sample, messages=messages, unlearnt=unlearnt), thinking


def _learnt(sample: Sample, is_answer: list[bool], config: FinetuneConfig) -> list[bool]:
    answers = [index for index, message in enumerate(sample.messages) if message["role"] == "assistant"]
    runs = answer_runs(is_answer)
    assert len(runs) == len(answers), (len(runs), answers)
    chosen = set(answers)
    if config.learn == "last_answer":
        chosen = {answers[-1]}
    elif config.learn == "last_turn":
        query = last_query_index(sample.messages)
        chosen = {index for index in answers if index > query}
    if not (chosen := chosen - sample.unlearnt):
        raise SampleError("nothing to learn", f"no answer is left by finetune.learn {config.learn}")
    learnt = [False] * len(is_answer)
    for index, (start, end) in zip(answers, runs, strict=True):
        if index in chosen:
            if end - start == 1:
                raise SampleError("empty answer", f"message {index} renders as nothing but its end")
            learnt[start:end] = [True] * (end - start)
    return learnt


def _notes(sample: Sample, segments: Sequence[Segment], thinking: str) -> set[Note]:
    notes: set[Note] = set()
    query = last_query_index(sample.messages)
    reasoned = [index for index, message in enumerate(sample.messages) if _has_reasoning(message)]
    if thinking == "off" and any(index > query for index in reasoned):
        notes.add("reasoning under `detailed thinking off`")
    if any(index < query for index in reasoned):
        notes.add("reasoning of earlier answers, which the chat format leaves out")
    if any(token in segment.text for segment in segments if segment.from_user for token in SPECIAL_TOKENS):
        notes.add("special tokens spelt in the text, encoded as text")
    return notes


def _has_reasoning(message: dict[str, Any]) -> bool:
    if message["role"] != "assistant":
        return False
    reasoning = message.get("reasoning_content")
    return bool(reasoning) if reasoning is not None else THINK_CLOSE in message["content"]
