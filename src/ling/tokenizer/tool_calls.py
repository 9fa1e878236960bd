"""Reading an assistant's turn: reasoning, text and tool calls (spec: tokenizer_chat.md 4).

    ["\\n"] ["<think>" REASONING "</think>"] [TEXT] ("<tool_call>" JSON "</tool_call>")*

JSON is an object with a string `name` and an object `arguments` (or a string that holds one). Calls are read
in order, and stand. Where the turn leaves this grammar, in a call or after one, all that follows the last
call read is text and comes back as it is: so the whole answer and its stream (`server.answer_parser`) agree.
"""

import json
import re
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
    """Text before the first call and, if `malformed`, what follows the last; None if there is none."""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    malformed: bool = False
    """A call was begun, and from the last of `tool_calls` on the text does not follow the grammar."""


def parse_answer(text: str) -> ParsedAnswer:
    """Split what the model wrote in one turn, given without its `<|role_end|>`.

    Reasoning that never ends (the answer was cut short) is reasoning to the last character.
    """
    reasoning, rest = _split_reasoning(text)
    start = rest.find(wording.CALL_OPEN)
    if start < 0:
        return ParsedAnswer(rest or None, reasoning)
    calls, end = _read_calls(rest, start)
    if not calls:
        return ParsedAnswer(rest, reasoning, malformed=True)
    after = rest[end:] if rest[end:].strip() else ""
    content = rest[:start].removesuffix("\n") + after
    return ParsedAnswer(content or None, reasoning, calls, malformed=bool(after))


def read_call(text: str, at: int = 0) -> tuple[ToolCall, int]:
    """Read a call's JSON that starts at `at`, and return the call and where its JSON ends.

    Raises ValueError where this is no call; what follows the JSON does not matter.
    """
    try:
        value, end = _DECODER.raw_decode(text, at)  # finds the end of the JSON, whatever its strings spell
        return _call(value), end
    except RecursionError:
        raise ValueError("nested too deeply") from None


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


def _read_calls(text: str, at: int) -> tuple[tuple[ToolCall, ...], int]:
    """Read one call after the other, blanks between them, and say where the last one that can be read ends."""
    calls: list[ToolCall] = []
    end = at
    while text.startswith(wording.CALL_OPEN, at := _after_blanks(text, end)):
        try:
            call, at = read_call(text, _after_blanks(text, at + len(wording.CALL_OPEN)))
        except ValueError:
            break
        at = _after_blanks(text, at)
        if not text.startswith(wording.CALL_CLOSE, at):
            break
        end = at + len(wording.CALL_CLOSE)
        calls.append(call)
    return tuple(calls), end


def _after_blanks(text: str, at: int) -> int:
    found = _NOT_BLANK.search(text, at)
    return found.start() if found else len(text)


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
_NOT_BLANK = re.compile(r"\S")
