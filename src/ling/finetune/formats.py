"""Records of the formats that people have, as samples; what cannot be meant is refused with its place in the record.

    messages   {"messages": [{"role": "user", "content": TEXT}, ...], "tools": [...]}      the published form
    openai     the same with names of one's own; sharegpt: {"conversations": [{"from": "human", "value": TEXT}, ...]}
    alpaca     {"instruction": TEXT, "input": TEXT, "output": TEXT, "history": [[TEXT, TEXT], ...], "system": TEXT}

Names are those of LLaMA-Factory's `dataset_info.json` (its `columns` and `tags`). A key that is null counts as absent:
columnar files fill rows up with nulls.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ling.config.fields import shown
from ling.data.records import read_json
from ling.finetune.sample import Reason, Sample, SampleError
from ling.tokenizer import format_tool_call, parse_answer

_THINKING: dict[object, Literal["off", "on"]] = {"off": "off", "on": "on", False: "off", True: "on"}
_MESSAGE_KEYS = {"content", "reasoning_content", "tool_calls", "function_call", "weight"}
_IDENTITIES = {"tool_call_id", "name", "id"}
"""Keys of a message that say which is which, and that no rendering of a chat shows."""
_CALL = "call"
"""The role of a message that is an answer whose text spells tool calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """Records that hold a list of messages."""

    messages: tuple[str, ...] = ("messages", "conversations")
    """Key of the list: the one of these that is there."""
    system: str | None = None
    """Key of a system message beside the list."""
    tools: str | None = "tools"
    role: str = "role"
    content: str = "content"
    roles: Mapping[str, str] = field(
        default_factory=lambda: {
            "system": "system", "user": "user", "assistant": "assistant", "tool": "tool", "observation": "tool",
        }
    )  # fmt: skip
    """Role of the renderer, or `call`, by the name it has in the data."""
    wrap_tools: bool = False
    """Put a bare function into `{"type": "function", "function": ...}`, as LLaMA-Factory does."""

    def sample(self, record: Any) -> Sample:
        """Read one record. Raises SampleError."""
        record = _object(record)
        there = [key for key in self.messages if record.get(key) is not None]
        if len(there) != 1:
            what = "both " + " and ".join(there) if there else "no " + " or ".join(self.messages)
            raise SampleError("no conversation", f"the record has {what}")
        given = record[there[0]]
        if not isinstance(given, list):
            raise SampleError("no conversation", f"{there[0]} must be a list, got {type(given).__name__}")
        ignored = {key for key, value in record.items() if value is not None}
        ignored -= {there[0], self.system, self.tools, "thinking"}
        messages = [self._message(message, index, ignored) for index, message in enumerate(given)]
        shift = _put_system(messages, record.get(self.system) if self.system else None)
        unlearnt = frozenset(index + shift for index, message in enumerate(given) if message.get("weight") == 0)
        return _checked(messages, record, self.tools, self.wrap_tools, unlearnt, ignored)

    def _message(self, given: Any, index: int, ignored: set[str]) -> dict[str, Any]:
        where = f"message {index}"
        if not isinstance(given, dict):
            raise SampleError("damaged message", f"{where} must be an object, got {type(given).__name__}")
        name = given.get(self.role)
        if not isinstance(name, str):
            raise SampleError("damaged message", f"{where} has no text as its {self.role}")
        if name not in self.roles:
            raise SampleError("unknown role", f"{where} has the {self.role} {shown(name)}; known: {_list(self.roles)}")
        role = self.roles[name]
        known = _MESSAGE_KEYS - {"content"} if role in ("assistant", _CALL) else set()
        known |= {self.role, self.content, *_IDENTITIES}
        ignored |= {f"messages.{key}" for key, value in given.items() if value is not None and key not in known}
        text = _text(given.get(self.content), where)
        if role not in ("assistant", _CALL):
            if text is None and role != "tool":
                raise SampleError("content is not text", f"the {self.content} of {where} is missing")
            return {"role": role, "content": text or ""}
        if given.get("weight") not in (None, 0, 1):
            raise SampleError("damaged message", f"the weight of {where} must be 0 or 1, got {shown(given['weight'])}")
        return _answer(given, text, where, spells_calls=role == _CALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaFormat:
    """Records that hold an instruction and its answer, with former pairs of both in `history`."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = "history"
    system: str | None = "system"
    tools: str | None = "tools"

    def sample(self, record: Any) -> Sample:
        """Read one record. Raises SampleError."""
        record = _object(record)
        keys = {self.prompt, self.query, self.response, self.history, self.system, self.tools, "thinking"}
        pairs = [*self._history(record), (self._question(record), self._value(record, self.response))]
        messages: list[dict[str, Any]] = []
        for index, (question, answer) in enumerate(pairs):
            if answer is None:
                raise SampleError("nothing to learn", f"{self.response} is missing")
            where = f"pair {index} of {self.history}" if index < len(pairs) - 1 else "the record"
            messages.append({"role": "user", "content": _text(question, where)})
            messages.append({"role": "assistant", "content": _text(answer, where)})
        _put_system(messages, self._value(record, self.system))
        ignored = {key for key, value in record.items() if value is not None} - keys
        return _checked(messages, record, self.tools, True, frozenset(), ignored)

    def _value(self, record: Mapping[str, Any], key: str | None) -> Any:
        return None if key is None else record.get(key)

    def _question(self, record: Mapping[str, Any]) -> str:
        parts = [_text(self._value(record, key), f"{key} of the record") for key in (self.prompt, self.query)]
        if not any(parts):
            raise SampleError("no conversation", f"the record has no {_list((self.prompt, self.query))}")
        return "\n".join(part for part in parts if part)

    def _history(self, record: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        given = self._value(record, self.history) or []
        pairs = isinstance(given, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in given)
        if not pairs or any(part is None for pair in given for part in pair):
            raise SampleError("damaged message", f"{self.history} must be a list of pairs of texts")
        return [(question, answer) for question, answer in given]


# ---- pieces of a record ----


def _object(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise SampleError("damaged record", f"must be an object, got {type(record).__name__}")
    return record


def _checked(
    messages: list[dict[str, Any]],
    record: Mapping[str, Any],
    tools: str | None,
    wrap: bool,
    unlearnt: frozenset[int],
    ignored: set[str],
) -> Sample:
    """Put a sample together, by the rules that the published fine-tuning has for whole conversations."""
    if len(messages) < 2:
        raise SampleError("no conversation", f"the list of messages has length {len(messages)}; two are needed")
    if messages[0]["role"] == "assistant":
        raise SampleError("begins with an answer", "message 0 must be a question or the system's")
    answers = {index for index, message in enumerate(messages) if message["role"] == "assistant"}
    if not answers - unlearnt:
        raise SampleError("nothing to learn", "no answer" if not answers else "the weight of every answer is 0")
    thinking = record.get("thinking")
    if thinking is not None and not (isinstance(thinking, str | bool) and thinking in _THINKING):
        raise SampleError("damaged record", f"thinking must be on or off, got {shown(thinking)}")
    said = None if thinking is None else _THINKING[thinking]
    return Sample(messages, _tools(record.get(tools) if tools else None, wrap), said, unlearnt, frozenset(ignored))


def _put_system(messages: list[dict[str, Any]], given: Any) -> int:
    """Put a system message that stands beside the others in front; return by how many places they moved."""
    text = _text(given, "the system message")
    if not text or (messages and messages[0]["role"] == "system"):  # the first message goes before, as in LLaMA-Factory
        return 0
    messages.insert(0, {"role": "system", "content": text})
    return 1


def _text(value: Any, where: str) -> str | None:
    """Return a text, or the texts of content parts, joined; None for none."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise SampleError("content is not text", f"{where} has content parts that are not text")
        return "".join(part for part in parts if part)
    if value is not None and not isinstance(value, str):
        raise SampleError("content is not text", f"{where} has a content of type {type(value).__name__}")
    return value


def _answer(given: Mapping[str, Any], text: str | None, where: str, *, spells_calls: bool) -> dict[str, Any]:
    reasoning, calls = given.get("reasoning_content"), given.get("tool_calls") or given.get("function_call")
    if reasoning is not None and not isinstance(reasoning, str):
        raise SampleError("content is not text", f"the reasoning_content of {where} is a {type(reasoning).__name__}")
    if not calls and spells_calls:
        text, calls = _spelt_calls(text or "", where)
    message: dict[str, Any] = {"role": "assistant", "content": text or ""}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        calls = [calls] if isinstance(calls, dict) else calls
        if not isinstance(calls, list):
            raise SampleError("damaged tool call", f"tool_calls of {where} must be a list, got {type(calls).__name__}")
        message["tool_calls"] = [_call(call, f"tool call {n} of {where}") for n, call in enumerate(calls)]
    return message


def _spelt_calls(text: str, where: str) -> tuple[str, Any]:
    """Split the text of a call message into what stands before the JSON (reasoning in think tags) and the calls."""
    head, mark, tail = text.rpartition("</think>")
    try:
        return head + mark, read_json(tail)
    except ValueError as error:
        raise SampleError("damaged tool call", f"{where} is no JSON of calls: {error}") from None


def _call(given: Any, where: str) -> dict[str, Any]:
    """Return a call's function, if the model's own spelling of it can be read back."""
    function = given.get("function") or given if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise SampleError("damaged tool call", f"{where} must be an object with name and arguments")
    name, arguments = function["name"], function.get("arguments")
    if not isinstance(arguments, str | dict):
        raise SampleError("damaged tool call", f"the arguments of {where} must be an object or JSON text of one")
    try:
        read = parse_answer(format_tool_call(name, arguments))
    except (ValueError, RecursionError):
        raise SampleError("damaged tool call", f"the arguments of {where} cannot be written as JSON") from None
    if read.malformed or len(read.tool_calls) != 1 or read.tool_calls[0].name != name:
        raise SampleError("damaged tool call", f"{where}, as rendered, is no JSON: {shown(arguments)}")
    return {"name": name, "arguments": arguments}


def _tools(given: Any, wrap: bool) -> list[dict[str, Any]] | None:
    if isinstance(given, str) and given.strip():
        try:
            given = read_json(given)
        except ValueError as error:
            raise SampleError("damaged tools", f"the tools are text, but no JSON: {error}") from None
    if not given:
        return None
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise SampleError("damaged tools", "the tools must be a list of objects, or JSON text of one")
    bare = [wrap and tool.get("type") != "function" for tool in given]
    return [{"type": "function", "function": tool} if b else tool for tool, b in zip(given, bare, strict=True)]


def _list(names: Any) -> str:
    return ", ".join(str(name) for name in names if name is not None)


__all__ = ["AlpacaFormat", "ChatFormat", "Reason"]
