"""What was said so far, and the commands that change it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ling.errors import DataError, LingError

COMMANDS = {
    "/system TEXT": "instructions for the model from now on; without TEXT, show them; /system - forgets them",
    "/reset": "forget what was said, keep the instructions",
    "/save FILE": "append the conversation to a jsonl file, as `ling finetune` reads it",
    "/load FILE": "go on with the last conversation of such a file",
    "/help": "this list",
    "/quit": "end, as does Ctrl-D",
}
HINT = "/help lists commands; a \\ at its end continues a line; Ctrl-C stops an answer"


class QuitError(Exception):
    """The person wants to end."""


@dataclass(slots=True)
class Conversation:
    """Turns of `user` and `assistant`, and what the system message says."""

    system: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def command(self, line: str) -> str:
        """Do what a line that begins with / asks; return what to tell. Raises QuitError, LingError."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/quit" | "/exit" | "/bye":
                raise QuitError
            case "/help":
                return "\n".join(f"{command:14}{what}" for command, what in COMMANDS.items())
            case "/reset":
                self.turns.clear()
                return "forgotten"
            case "/system":
                return self._instruct(rest)
            case "/save":
                return self._save(_file(rest, name))
            case "/load":
                return self._load(_file(rest, name))
        return f"there is no command {name}; /help lists them, and a blank before the / makes it a message"

    def _instruct(self, text: str) -> str:
        if not text:
            return f"instructions: {self.system}" if self.system else "there are no instructions"
        self.system = "" if text == "-" else text
        return "instructions set" if self.system else "instructions forgotten"

    def _save(self, file: Path) -> str:
        if not self.turns:
            raise LingError("there is nothing to save yet")
        record = json.dumps({"messages": self.messages}, ensure_ascii=False)
        try:
            with file.open("a", encoding="utf-8", errors="replace") as out:
                out.write(record + "\n")
        except OSError as error:
            raise DataError(f"cannot write {file}: {error.strerror}") from None
        return f"{len(self.messages)} messages appended to {file}"

    def _load(self, file: Path) -> str:
        from ling.data.records import DamagedRecordError, read_records

        record = None
        for record in read_records(file):  # noqa: B007  the last one
            pass
        try:
            value = record.parse() if record is not None else None
        except DamagedRecordError as error:
            raise DataError(f"{file} does not end with a conversation but in text that is not JSON: {error}") from None
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list) or not messages or not all(_is_turn(m) for m in messages):
            raise DataError(f"{file} does not end with a conversation of system, user and assistant messages")
        first = messages[0]
        self.system = first["content"] if first["role"] == "system" else ""
        self.turns = [{"role": m["role"], "content": m["content"]} for m in messages if m["role"] != "system"]
        return f"{len(messages)} messages loaded"


def _file(name: str, command: str) -> Path:
    if not name:
        raise LingError(f"{command} needs a file")
    return Path(name).expanduser()


def _is_turn(message: Any) -> bool:
    """Whether a message is one that this conversation can hold."""
    return (
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant")
        and isinstance(message.get("content"), str)
        and not message.get("tool_calls")
    )
