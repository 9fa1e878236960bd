"""What became of every record: kept, or left out with its place and reason."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MOST_LISTED = 100_000
"""So many skipped records are listed one by one; beyond, they are only counted."""
_NUMBERS = ("read", "kept", "heldout", "tokens", "learnt_tokens", "longest_tokens")
_COUNTERS = ("reasons", "notes", "ignored_keys")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was left out."""

    where: str
    """FILE:LINE, or FILE:ROW for parquet."""
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.detail}"


@dataclass(slots=True, kw_only=True)
class Report:
    """Counts of one reading of all data sets."""

    read: int = 0
    kept: int = 0
    """Samples, those held out included."""
    heldout: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    longest_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Records left out, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """Samples that are kept and that something is worth knowing of."""
    ignored_keys: Counter[str] = field(default_factory=Counter)
    """Records in which a key stands that nothing reads."""
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def num_skipped(self) -> int:
        return self.reasons.total()

    def skip(self, where: str, reason: str, detail: str) -> None:
        self.reasons[reason] += 1
        if len(self.skipped) < MOST_LISTED:
            self.skipped.append(Skipped(where, reason, detail))

    def tree(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        tree = {name: getattr(self, name) for name in _NUMBERS}
        tree |= {name: dict(getattr(self, name)) for name in _COUNTERS}
        return {**tree, "skipped": [dataclasses.asdict(one) for one in self.skipped]}

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> "Report":
        counters = {name: Counter(tree[name]) for name in _COUNTERS}
        return cls(**(tree | counters | {"skipped": [Skipped(**one) for one in tree["skipped"]]}))
