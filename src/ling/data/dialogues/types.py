"""What a generated dialogue is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ling.data.dialogues.split import canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """Hold one prompt, its right answer, and what a scorer needs to judge any other answer."""

    task: str
    """One of `ling.data.dialogues.TASKS`."""
    messages: tuple[Mapping[str, Any], ...]
    """In the OpenAI format. The last one is the assistant's answer: `content`, or `tool_calls`."""
    expected: Mapping[str, Any]
    """What `score` compares with; its keys belong to the task. Plain values, fit for JSON."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """In the OpenAI format, whole `{"type": "function", ...}` objects."""
    language: str = "en"
    """`en` or `zh`."""
    split_text: str = ""
    """Split on this instead of on the wording: set by tasks that must work on unseen *operands*."""

    @property
    def prompt(self) -> tuple[Mapping[str, Any], ...]:
        """Return the messages a model gets, all but the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> Mapping[str, Any]:
        """Return the assistant's message that ends the dialogue."""
        return self.messages[-1]

    @property
    def wording(self) -> str:
        """Return what the user wrote and the tools, without spaces, case and punctuation."""
        written = " ".join(message["content"] for message in self.messages if message["role"] == "user")
        return canonical(written + json.dumps(self.tools) if self.tools else written)

    @property
    def key(self) -> str:
        """Return the text that `heldout` decides on: `split_text` if there is one, else the wording."""
        return f"{self.task}:{self.split_text}" if self.split_text else self.wording


def one_turn(
    task: str,
    question: str,
    answer: str,
    *,
    expected: Mapping[str, Any],
    language: str = "en",
    split_text: str = "",
) -> Dialogue:
    """Build the usual dialogue: one question, one answer."""
    return Dialogue(
        task=task,
        messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}),
        expected=expected,
        language=language,
        split_text=split_text,
    )
