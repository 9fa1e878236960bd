"""Reading an assistant's turn: reasoning, text and tool calls (spec: tokenizer_chat.md 4).

    ["\\n"] ["<think>" REASONING "</think>"] [TEXT] ("<tool_call>" JSON "</tool_call>")*

JSON is an object with a string `name` and an object `arguments` (or a string that holds one). A turn that
starts a call and does not follow this grammar to its end is no call at all: its text comes back as it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ling.tokenizer import wording


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]

    @property
    def arguments_json(self) -> str:
        """The arguments as the OpenAI API passes them on."""
        return wording.to_json(self.arguments)


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    content: str | None
    """Text before the first call, or None if there is none."""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    malformed: bool = False
    """A call was begun and cannot be read; `content` then holds everything after the reasoning, unchanged."""


def parse_answer(text: str) -> ParsedAnswer:
    """Split what the model wrote in one turn, given without its `<|role_end|>`.

    Reasoning that never ends (the answer was cut short) is reasoning to the last character.
    """
    reasoning, rest = _split_reasoning(text)
    before, begun, calls = rest.partition(wording.CALL_OPEN)
    if not begun:
        return ParsedAnswer(rest or None, reasoning)
    try:
        tool_calls = _read_calls(begun + calls)
    except (ValueError, RecursionError):  # JSON's errors and our own are ValueErrors
        return ParsedAnswer(rest, reasoning, malformed=True)
    return ParsedAnswer(before.removesuffix("\n") or None, reasoning, tool_calls)


def format_tool_call(name: str, arguments: Mapping[str, Any] | str) -> str:
    """Spell a call as the chat format does: the name and a string of arguments stay as they are."""
    spelt = arguments if isinstance(arguments, str) else wording.to_json(arguments)
    return wording.CALL_BEFORE_NAME + name + wording.CALL_BEFORE_ARGUMENTS + spelt + wording.CALL_AFTER


def _split_reasoning(text: str) -> tuple[str | None, str]:
    start = text.removeprefix("\n")
    if not start.startswith(wording.THINK_OPEN):
        return None, text
    reasoning, _, rest = start.removeprefix(wording.THINK_OPEN).partition(wording.THINK_CLOSE)
    return reasoning.strip("\n") or None, rest.lstrip("\n")


def _read_calls(text: str) -> tuple[ToolCall, ...]:
    """Read one call after the other; only blanks may stand between and after them."""
    calls: list[ToolCall] = []
    while text := text.lstrip():
        if not text.startswith(wording.CALL_OPEN):
            raise ValueError(f"text after call {len(calls)}")
        body = text.removeprefix(wording.CALL_OPEN).lstrip()
        value, end = _DECODER.raw_decode(body)  # finds the end of the JSON, whatever its strings spell
        text = body[end:].lstrip()
        if not text.startswith(wording.CALL_CLOSE):
            raise ValueError(f"call {len(calls)} is not closed")
        text = text.removeprefix(wording.CALL_CLOSE)
        calls.append(_call(value))
    return tuple(calls)


def _call(value: object) -> ToolCall:
    if not isinstance(value, dict):
        raise ValueError("a call is not an object")
    name, arguments = value.get("name"), value.get("arguments")
    if isinstance(arguments, str):
        arguments = _DECODER.decode(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call needs a string name and arguments that are an object")
    (name + wording.to_json(arguments)).encode()  # half a surrogate pair is no text: UnicodeEncodeError
    return ToolCall(name, arguments)


def _refuse_constant(spelling: str) -> None:
    raise ValueError(f"{spelling} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
