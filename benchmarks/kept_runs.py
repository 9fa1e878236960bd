"""Many short trainings side by side, one thread each, whose results stay where they are when the rest is stopped."""

import json
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from ling.errors import DataError


def run_all(
    tasks: Mapping[str, tuple[Any, ...]],
    function: Callable[..., dict[str, Any]],
    file: Path,
    settings: dict[str, Any],
    workers: int,
) -> dict[str, dict[str, Any]]:
    """Return what `function` gives for each task, by name; those that `file` has already are not run.

    tasks     arguments of `function`, by name, in the order in which they begin
    function  of a module's top level, since workers are processes; what it returns goes into JSON
    settings  of every run in `file`, which is written after each
    Raises DataError if `file` has runs of other settings, or is not of ours.
    """
    kept = read_kept(file, settings)
    left = {name: arguments for name, arguments in tasks.items() if name not in kept}
    if left:
        spawned = multiprocessing.get_context("spawn")  # a fork would inherit threads of torch in any state
        with ProcessPoolExecutor(workers, spawned, torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(function, *arguments): name for name, arguments in left.items()}
            for done in as_completed(running):
                kept[running[done]] = done.result()
                write_kept(file, settings, kept)
                print(f"{running[done]}: {json.dumps(kept[running[done]])[:160]}", flush=True)
    return {name: kept[name] for name in tasks}


def read_kept(file: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the runs of `file`, none if it is not there; DataError as `run_all`."""
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        runs, found = record["runs"], record["settings"]
    except (ValueError, LookupError, TypeError):
        raise DataError(f"{file} does not hold runs of a benchmark; name another file, or remove it") from None
    if found != json.loads(json.dumps(settings)):
        raise DataError(f"{file} has runs of other settings, {found}, not {settings}; name another file, or remove it")
    return runs


def write_kept(file: Path, settings: dict[str, Any], runs: dict[str, dict[str, Any]]) -> None:
    """Replace `file` as a whole, so that a process that is killed leaves the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)
