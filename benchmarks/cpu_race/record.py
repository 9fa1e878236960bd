"""One file of results that grows with every part, and goes on from an earlier one of the same settings."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.cpu_race.figures import lines
from benchmarks.results import HERE, command, save


class Record:
    """Results of `item`, saved whenever something is kept.

    settings  what must be the same in an earlier file for its parts to be taken over
    """

    def __init__(self, item: str, settings: dict[str, Any], out: Path | None = None) -> None:
        self._item = item
        self._out = out or HERE
        self.numbers = {"settings": settings} | _earlier(item, settings, self._out)
        self.path = self._out

    def keep(self, key: str, found: dict[str, Any]) -> None:
        """Put a part's figures in the place of older ones, print and save them."""
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        self.numbers[key] = {"when": when, "command": command()} | found
        print("\n".join(lines(key, found) or [f"{key}: {found}"]), flush=True)
        self.path = save(self._item, self.numbers, self._out)


def _earlier(item: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return the parts in the latest file of `item`, if that has the same settings."""
    files = sorted(out.glob(f"*-{item}.json"), key=lambda file: file.name[: len("2026-01-01")])
    if not files:
        return {}
    numbers: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))["numbers"]
    if numbers.pop("settings", None) != settings:
        return {}
    return numbers
