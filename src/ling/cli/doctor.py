"""`ling doctor`: what is wrong with a checkpoint, and mending it."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ling.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ling.checkpoint.doctor import Finding

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def doctor(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR|NAME", help="Hugging Face directory, or a hub's model.")],
    fix: Annotated[bool, typer.Option("--fix", help="Write every fix that needs no guess; originals stay as .bak.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Read every value too, not only headers.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 for warnings too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report every known trap of a checkpoint, each with its fix: config, index, headers, tokenizer, generation config.

    Exit code 0 unless there are errors; with --strict, unless there are errors or warnings.
    """
    from ling.checkpoint.doctor import examine, mend
    from ling.cli.models import resolve_checkpoint
    from ling.cli.progress import progress_bar

    directory = resolve_checkpoint(checkpoint)
    found = examine(directory)
    written: list[str] = []
    if fix and any(finding.repair is not None for finding in found):
        with progress_bar("rewriting weights", in_bytes=True) as progress:
            written = mend(directory, found, progress)
        found = examine(directory)
    if weights:
        found = _with_weights(directory, found)
    if as_json:
        _print_json(directory, found, written)
    else:
        _print_table(directory, found, written, tell_fix=not fix)
    _verdict(directory, found, strict)


def _with_weights(directory: Path, found: "list[Finding]") -> "list[Finding]":
    from ling.checkpoint.doctor import SEVERITIES, examine_weights
    from ling.cli.progress import progress_bar

    try:
        with progress_bar(f"reading the weights of {directory.name}") as progress:
            more = examine_weights(directory, progress)
    except CheckpointError:
        if any(finding.severity == "error" for finding in found):
            return found  # which say why
        raise
    return sorted([*found, *more], key=lambda finding: SEVERITIES.index(finding.severity))


def _print_json(directory: Path, found: "list[Finding]", written: list[str]) -> None:
    counts = Counter(finding.severity for finding in found)
    rows = [
        {
            "severity": f.severity, "check": f.check, "where": f.where, "what": f.what, "fix": f.fix,
            "fixable": f.repair is not None,
        }
        for f in found
    ]  # fmt: skip
    told = {"directory": str(directory), "counts": {s: counts[s] for s in _COLOURS}, "written": written, "findings": rows}
    print(json.dumps(told, indent=2, ensure_ascii=False))


def _print_table(directory: Path, found: "list[Finding]", written: list[str], *, tell_fix: bool) -> None:
    console = Console(highlight=False)
    for name in written:
        console.print(f"mended {name}", style="green")
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 1, 0))
    for column in ("severity", "where", "what", "fix"):
        table.add_column(column, overflow="fold")
    for f in found:
        remedy = f"{f.fix} [--fix]" if f.repair is not None and tell_fix else f.fix
        table.add_row(Text(f.severity, style=_COLOURS[f.severity]), Text(f.where), Text(f.what), Text(remedy))
    if found:
        console.print(table)
    counts = Counter(finding.severity for finding in found)
    told = ", ".join(_count(counts[severity], severity) for severity in _COLOURS)
    mendable = sum(finding.repair is not None for finding in found)
    console.print(f"{directory}: {told}" + (f"; --fix mends {mendable}" if mendable else ""), soft_wrap=True)


def _verdict(directory: Path, found: "list[Finding]", strict: bool) -> None:
    worst = {"error", "warning"} if strict else {"error"}
    bad = [finding for finding in found if finding.severity in worst]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise CheckpointError(f"{directory}: {bad[0].where}: {bad[0].what}{more}")


def _count(number: int, severity: str) -> str:
    return f"{number} {severity}{'' if number == 1 else 's'}"
