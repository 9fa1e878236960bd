"""What a benchmark prints, and the file it may leave."""

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ling.errors import ConfigError
from ling.version import __version__


def describe_machine(*, with_torch: bool) -> dict[str, Any]:
    """Return what a reader needs to judge a number by.

    with_torch  the model runs in this process, so torch's version and threads are told
    """
    machine: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "ling": __version__,
    }
    if with_torch:
        import torch

        machine |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
    return machine


@dataclass(frozen=True, slots=True)
class Grid:
    """Figures side by side: what the columns are called, and rows of a name and a figure for each."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def print_report(
    title: str,
    rows: Iterable[tuple[str, str]],
    machine: Mapping[str, Any],
    notes: Iterable[str],
    grid: Grid | None = None,
) -> None:
    """Print names and values, a grid below them, the machine, and what a reader has to know."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(title, style="bold", markup=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    if grid is not None:
        table = Table("", *grid.columns, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, values in grid.rows:
            table.add_row(name, *values)
        console.print(table)
    console.print("machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()), markup=False)
    for note in notes:
        console.print(note, markup=False)


def metric_grid(numbers: Mapping[str, Any], metrics: Mapping[str, str], percentiles: Sequence[float]) -> Grid:
    """Return mean, median and percentiles in milliseconds of each metric in `numbers`."""
    kinds = ["mean", "median", *(f"p{p:g}" for p in percentiles)]
    rows = [
        (f"{name.upper()}: {words}", [f"{numbers[f'{kind}_{name}_ms']:,.2f}" for kind in kinds])
        for name, words in metrics.items()
        if f"mean_{name}_ms" in numbers
    ]
    return Grid([f"{kind} (ms)" if kind == "mean" else kind for kind in kinds], rows)


def check_writable(file: Path | None) -> None:
    """Refuse a result file that could not be written, before anything is measured."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ConfigError(f"cannot write {file}: it is a directory, or there is none that it could lie in")


def save_result(file: Path | None, numbers: Mapping[str, Any], settings: Mapping[str, Any], machine: Any) -> None:
    """Write numbers with what they depend on to `file`, if there is one."""
    if file is None:
        return
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"date": when, **settings, "machine": machine, **numbers}
    file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()
