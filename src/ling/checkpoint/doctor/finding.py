"""What the doctor says: findings, and the changes that mend them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_LONGEST = 400
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""error: the checkpoint is damaged, or is another network than it says. warning: a known reader fails on it or silently
computes something else. note: worth knowing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Keys of a JSON object beside the weights, set or removed."""

    file: str
    set: Mapping[str, Any] = field(default_factory=dict)
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RebuildIndex:
    """The index, written anew from the headers of the files."""


@dataclass(frozen=True, slots=True)
class Widen:
    """Tensors whose dtype becomes float32, their values unchanged."""

    keys: tuple[str, ...]


Repair = Edit | RebuildIndex | Widen


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One trap: where it is, what it does, and what mends it."""

    severity: Severity
    where: str
    """File, tensor or key."""
    what: str
    fix: str
    """What a person does about it; empty for a note that asks for nothing."""
    repair: Repair | None = None
    """The fix, if it can be written without a guess."""
    check: str = ""
    """Name of the check that found it."""


def error(where: str, what: str, fix: str, repair: Repair | None = None) -> Finding:
    return Finding(severity="error", where=where, what=what, fix=fix, repair=repair)


def warning(where: str, what: str, fix: str, repair: Repair | None = None) -> Finding:
    return Finding(severity="warning", where=where, what=what, fix=fix, repair=repair)


def note(where: str, what: str, fix: str = "") -> Finding:
    return Finding(severity="note", where=where, what=what, fix=fix)


def one_line(text: str) -> str:
    """Return `text`, which a file may have worded in part, without what moves the cursor, and not endless."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def listed(names: list[str], most: int = 2) -> str:
    """Return some of `names` and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
