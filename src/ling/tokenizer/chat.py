"""The one chat renderer: messages to a prompt, and to token ids with a mask of what is trained on.

Training and serving both come through here. The published templates are the specification; the Jinja text
that `Tokenizer.save` exports (`template.py`) spells it again for other programs, held equal by a test.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypedDict, Unpack, get_args

from ling.errors import RequestError
from ling.tokenizer import wording
from ling.tokenizer.segment import Message, Segment, Tools, content, control, required_text
from ling.tokenizer.sft import sft_segments
from ling.tokenizer.special import ROLE_CLOSE, ROLE_OPEN
from ling.tokenizer.tokenizer import Tokenizer

Template = Literal["sft", "pretrain"]
Thinking = Literal["off", "on"]


class ChatOptions(TypedDict, total=False):
    """What `render_segments` takes beside the messages."""

    tools: Tools | None
    add_generation_prompt: bool
    template: Template
    thinking: Thinking
    system_newline: bool


def render_segments(
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    add_generation_prompt: bool = False,
    template: Template = "sft",
    thinking: Thinking = "off",
    system_newline: bool = False,
) -> list[Segment]:
    """Render a chat as segments whose texts, joined, are the exact prompt.

    tools           OpenAI tools, rendered as they are; the pretrain template has no place for them
    thinking        "on" ends the header with `detailed thinking on` (the published template is always off)
    system_newline  render a missing system message as an empty one, as the Megatron fine-tuning code does
    Raises RequestError for no messages, or one that cannot be rendered, with its index.
    """
    _check(messages, tools, template, thinking, system_newline)
    segments = (
        sft_segments(messages, tools, thinking, system_newline) if template == "sft" else _pretrain_segments(messages)
    )
    prompt = [control(wording.role_header(wording.ASSISTANT))] if add_generation_prompt else []
    return [segment for segment in (*segments, *prompt) if segment.text]


def render(messages: Sequence[Message], **options: Unpack[ChatOptions]) -> str:
    """Render a chat as one string."""
    return "".join(segment.text for segment in render_segments(messages, **options))


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], **options: Unpack[ChatOptions]
) -> tuple[list[int], list[bool]]:
    """Render a chat as token ids, and say for each whether it belongs to an answer."""
    return encode_segments(tokenizer, render_segments(messages, **options))


def encode_segments(tokenizer: Tokenizer, segments: Iterable[Segment]) -> tuple[list[int], list[bool]]:
    """Encode segments so that only the format's own special tokens act as such.

    Text is cut at the special tokens of control segments, where answers begin and end as well, and nowhere
    else: everything between two of them is encoded as one string, across segment borders, with specials off.
    So for contents that spell no special token the ids are those of the joined string, and for others the
    spelling stays ordinary text.
    """
    ids: list[int] = []
    answer_mask: list[bool] = []
    for is_answer, run in itertools.groupby(segments, key=lambda segment: segment.is_answer):
        new = _encode_run(tokenizer, run)
        ids += new
        answer_mask += [is_answer] * len(new)
    return ids, answer_mask


def _encode_run(tokenizer: Tokenizer, segments: Iterable[Segment]) -> list[int]:
    ids: list[int] = []
    waiting = ""  # text since the last special token
    for segment in segments:
        parts = [(segment.text, None)] if segment.from_user else tokenizer.split_special(segment.text)
        for text, id in parts:
            if id is None:
                waiting += text
            else:
                ids += [*tokenizer.encode(waiting, special=False), id]
                waiting = ""
    return ids + tokenizer.encode(waiting, special=False)


def _pretrain_segments(messages: Sequence[Message]) -> Iterator[Segment]:
    """Give the pieces of the pre-training format, which has no end of turn (spec: tokenizer_chat.md 2)."""
    for index, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str):
            raise RequestError(f"message {index}: the role must be a string, got {type(role).__name__}")
        role = role.lower()
        yield control(ROLE_OPEN)
        yield control(wording.HUMAN) if role == "user" else content(role.upper())
        yield control(ROLE_CLOSE)
        yield Segment(required_text(message, index), is_answer=role == "assistant", from_user=True)


def _check(messages: object, tools: object, template: str, thinking: str, system_newline: bool) -> None:
    for name, value, kind in (("template", template, Template), ("thinking", thinking, Thinking)):
        if value not in get_args(kind):
            raise RequestError(f"unknown {name} {value!r}; choose {' or '.join(get_args(kind))}")
    if template == "pretrain" and (thinking != "off" or system_newline):
        raise RequestError(
            "the pretrain template has no header, so thinking and system_newline have no place in it; "
            "leave them out, or choose the template sft"
        )
    for what, items in (("message", messages), ("tool", tools or ())):
        if not isinstance(items, list | tuple):
            raise RequestError(f"{what}s must be a list, got {type(items).__name__}")
        for index, item in enumerate(items):
            if not isinstance(item, Mapping):
                raise RequestError(f"{what} {index} must be an object, got {type(item).__name__}")
    if not messages:
        raise RequestError("a chat needs at least one message, got none")
