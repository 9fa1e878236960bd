"""What every format is read into, and what is said of a record that cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ling.errors import DataError

Reason = Literal[
    "damaged record",
    "no conversation",
    "damaged message",
    "unknown role",
    "content is not text",
    "damaged tool call",
    "damaged tools",
    "begins with an answer",
    "nothing to learn",
    "empty answer",
    "too long",
    "not Unicode",
]
"""Why a record is left out; reports count by it."""


class SampleError(DataError):
    """A record that is left out: the reason it is counted under, and what exactly is wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, in the words of the chat renderer."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] | None = None
    thinking: Literal["off", "on"] | None = None
    """What the record itself says; None: nothing."""
    unlearnt: frozenset[int] = frozenset()
    """Indices of answers that the record itself excludes from learning (`weight: 0`)."""
    ignored_keys: frozenset[str] = field(default=frozenset())
    """Keys of the record that nothing reads."""
