"""What a run leaves on disk: `checkpoints/step_N/` and `metrics.jsonl`. Never imports torch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ling.errors import CheckpointError

CHECKPOINTS_NAME = "checkpoints"
METRICS_NAME = "metrics.jsonl"
_STEP = "step_"


def checkpoint_path(directory: Path, step: int) -> Path:
    return directory / f"{_STEP}{step:06d}"


def checkpoint_step(path: Path) -> int:
    """Return the number of updates behind a checkpoint, from its name."""
    return int(path.name.removeprefix(_STEP))


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of `directory` by step, which from a million on is not by name."""
    found = [p for p in directory.glob(f"{_STEP}*") if p.name.removeprefix(_STEP).isdecimal()]
    return sorted(found, key=checkpoint_step)


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint of `directory` with the highest step, or None."""
    return next(reversed(list_checkpoints(directory)), None)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`, none if there is no file; a last line that was cut short is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    numbers = [_parse(line) for line in lines]
    if numbers and numbers[-1] is None:
        numbers.pop()
    if None in numbers:
        raise CheckpointError(
            f"{path} line {numbers.index(None) + 1} does not hold the numbers of a step; "
            "remove that line, or bring the file back"
        )
    return [n for n in numbers if n is not None]


def write_metrics(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace the lines of `metrics.jsonl`; the file is never half written."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(metrics_line(line) for line in lines), encoding="utf-8")
    partial.replace(path)


def metrics_line(values: Mapping[str, Any]) -> str:
    return json.dumps(values) + "\n"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None
