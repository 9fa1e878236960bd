"""What a rendered chat consists of: pieces of text that know where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ling.errors import RequestError

Message = Mapping[str, Any]
"""One message as in the OpenAI API: `role`, `content`; from assistants `reasoning_content`, `tool_calls`."""

Tools = Sequence[Mapping[str, Any]]
"""OpenAI tools, each the whole `{"type": "function", "function": {...}}`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a prompt; the pieces of a chat, joined, are the exact prompt."""

    text: str
    is_answer: bool = False
    """Written by the assistant, its end of turn included: what is trained on."""
    from_user: bool = False
    """Came with the request; a special token spelt in it must not act as one."""


def control(text: str) -> Segment:
    """Make a piece of the format itself."""
    return Segment(text)


def content(text: str) -> Segment:
    """Make a piece that came with the request."""
    return Segment(text, from_user=True)


def required_text(message: Message, index: int) -> str:
    """Take the content of message `index`, which must be text."""
    text = message.get("content")
    if not isinstance(text, str):
        raise RequestError(
            f"message {index}: the content of a {message.get('role')} message must be a string, "
            f"got {type(text).__name__}. Join content parts into one string first."
        )
    return text
