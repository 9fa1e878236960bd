"""The chat format of Ling 2.0, piece by piece (spec: tokenizer_chat.md 3).

    <role>SYSTEM</role>SYSTEM TEXT\\nTOOLS\\ndetailed thinking off<|role_end|>
    <role>HUMAN</role>TEXT<|role_end|>
    <role>ASSISTANT</role>\\n<think>\\nREASONING\\n</think>\\n\\nTEXT\\nCALLS<|role_end|>
    <role>OBSERVATION</role>\\n<tool_response>\\nTEXT\\n</tool_response><|role_end|>

The first line is always there. Reasoning is only kept after the last question; tool messages in a row share
one turn.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ling.errors import RequestError
from ling.log import log_once
from ling.tokenizer import wording
from ling.tokenizer.segment import Message, Segment, Tools, content, control, required_text
from ling.tokenizer.special import TURN_END
from ling.tokenizer.wording import role_header, to_json

logger = logging.getLogger(__name__)


def sft_segments(
    messages: Sequence[Message], tools: Tools | None, thinking: str, system_newline: bool
) -> Iterator[Segment]:
    """Give the pieces of a chat of at least one message, without a generation prompt.

    system_newline  treat a missing system message as an empty one
    """
    yield from _header(messages[0], tools, thinking, system_newline)
    query = last_query_index(messages)
    for index, message in enumerate(messages):
        match message.get("role"):
            case "user":
                yield control(role_header(wording.HUMAN))
                yield content(required_text(message, index))
                yield control(TURN_END)
            case "system" if index > 0:
                yield control(role_header(wording.SYSTEM))
                yield content(_optional_text(message))
                yield control(TURN_END)
            case "system":
                pass  # it stands in the header
            case "assistant":
                yield control(role_header(wording.ASSISTANT))
                for segment in _answer(message, index, with_reasoning=index > query):
                    yield replace(segment, is_answer=True)
            case "tool":
                yield from _observation(messages, index)
            case _:
                log_once(
                    logger,
                    "a message whose role is none of system, user, assistant, tool is rendered as nothing, "
                    "as in the published chat template",
                    logging.WARNING,
                )


def _header(first: Message, tools: Tools | None, thinking: str, system_newline: bool) -> Iterator[Segment]:
    yield control(role_header(wording.SYSTEM))
    if first.get("role") == "system":
        yield content(required_text(first, 0))
        yield control("\n")
    elif system_newline:
        yield control("\n")
    if tools:
        yield control(wording.TOOLS_BEFORE)
        for index, tool in enumerate(tools):
            yield control("\n")
            yield content(_json(tool, f"tool {index}"))
        yield control(wording.TOOLS_AFTER)
    yield control(wording.THINKING[thinking] + TURN_END)


def last_query_index(messages: Sequence[Message]) -> int:
    """Find the last message that a person wrote; answers after it keep their reasoning.

    A user message that wraps a tool's response is none. Without any, no answer keeps its reasoning.
    """
    for index in range(len(messages) - 1, -1, -1):
        text = messages[index].get("content")
        if messages[index].get("role") == "user" and isinstance(text, str):
            wrapped = text.startswith(wording.RESPONSE_OPEN) and text.endswith(wording.RESPONSE_CLOSE)
            if not wrapped:
                return index
    return len(messages) - 1


def _answer(message: Message, index: int, *, with_reasoning: bool) -> Iterator[Segment]:
    reasoning, text = _split_reasoning(message)
    if with_reasoning and reasoning:
        yield control(wording.REASONING_BEFORE)
        yield content(reasoning.strip("\n"))
        yield control(wording.REASONING_AFTER)
        yield content(text.lstrip("\n"))
    else:
        yield content(text)
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise RequestError(f"message {index}: tool_calls must be a list, got {type(calls).__name__}")
    for number, call in enumerate(calls):
        if number or text:
            yield control("\n")
        yield from _tool_call(call, f"message {index}, tool call {number}")
    yield control(TURN_END)


def _split_reasoning(message: Message) -> tuple[str, str]:
    """Give an assistant's reasoning and text; the reasoning may stand before the text, in think tags."""
    text, reasoning = _optional_text(message), message.get("reasoning_content")
    if isinstance(reasoning, str):
        return reasoning, text
    if wording.THINK_CLOSE not in text:
        return "", text
    before, after = text.partition(wording.THINK_CLOSE)[0], text.rpartition(wording.THINK_CLOSE)[2]
    return before.rstrip("\n").rpartition(wording.THINK_OPEN)[2].lstrip("\n"), after.lstrip("\n")


def _tool_call(call: Any, where: str) -> Iterator[Segment]:
    function = call.get("function") or call if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping) or not {"name", "arguments"} <= function.keys():
        raise RequestError(f"{where} must be an object with `name` and `arguments`")
    name, arguments = function["name"], function["arguments"]
    if not isinstance(name, str):
        raise RequestError(f"{where}: the name must be a string, got {type(name).__name__}")
    yield control(wording.CALL_BEFORE_NAME)
    yield content(name)
    yield control(wording.CALL_BEFORE_ARGUMENTS)
    yield content(arguments if isinstance(arguments, str) else _json(arguments, f"arguments of {where}"))
    yield control(wording.CALL_AFTER)


def _observation(messages: Sequence[Message], index: int) -> Iterator[Segment]:
    if index == 0 or messages[index - 1].get("role") != "tool":
        yield control(role_header(wording.OBSERVATION))
    yield control(wording.RESPONSE_BEFORE)
    yield content(_optional_text(messages[index]))
    yield control(wording.RESPONSE_AFTER)
    if index == len(messages) - 1 or messages[index + 1].get("role") != "tool":
        yield control(TURN_END)


def _optional_text(message: Message) -> str:
    """Take a message's content; one that is not text renders as nothing, as in the published template."""
    text = message.get("content")
    if isinstance(text, str):
        return text
    if text is not None:
        kind = type(text).__name__
        log_once(logger, f"message content of type {kind} is rendered as nothing", logging.WARNING)
    return ""


def _json(value: object, where: str) -> str:
    try:
        return to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} cannot be written as JSON: {error}") from None
