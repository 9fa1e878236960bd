"""Where a long training is every so many steps, so that one that is killed goes on from there, to the bit."""

from pathlib import Path
from typing import Any

import torch

from ling.errors import DataError
from ling.train.state import TrainState


def write_snapshot(file: Path, state: TrainState, facts: dict[str, Any], settings: dict[str, Any]) -> None:
    """Replace `file` as a whole by weights, moments and what is known about losses so far.

    facts, settings  plain values, since files are read without running code in them
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    kept = {"updates": state.optimizer.updates, "guard": state.guard.state()}
    torch.save({"tensors": state.tensors(), "state": kept, "facts": facts, "settings": settings}, partial)
    partial.replace(file)


def read_snapshot(file: Path | None, state: TrainState, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Put a snapshot into `state` and return its facts; None if there is none.

    Raises DataError if it is of other settings.
    """
    if file is None or not file.exists():
        return None
    found = torch.load(file, weights_only=True)
    if found["settings"] != settings:
        raise DataError(f"{file} is of a run with other settings; remove it, or name another directory")
    with torch.no_grad():
        for name, value in state.tensors().items():
            value.copy_(found["tensors"][name])
    state.optimizer.updates = found["state"]["updates"]
    state.guard.restore(found["state"]["guard"], str(file))
    facts: dict[str, Any] = found["facts"]
    return facts
