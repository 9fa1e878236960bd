"""The `ling demo` command: arguments, the run's directory, and what is printed at the end."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ling.cli.demo.directory import DEFAULT_OUT, RunDirectory
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.config.recipe import Recipe


def demo(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...")] = None,
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = DEFAULT_OUT,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe in place of the demo preset.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same as train.seed=N.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an interrupted run.")] = False,
    chat: Annotated[bool, typer.Option(help="Open a chat at the end, if there is a terminal.")] = True,
) -> None:
    """Train a small Ling MoE on real text, convert it, measure it, and talk to it. About five minutes; no download."""
    run = RunDirectory(out)
    settings = [*(overrides or []), *([f"train.seed={seed}"] if seed is not None else [])]
    resolved = _resolve(run, recipe, settings, resume=resume, restart=restart)
    from ling.cli.demo.pipeline import run_pipeline

    try:
        report, llm = run_pipeline(resolved, run, Console(stderr=True), resume=resume)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {run.how_to_go_on()}", file=sys.stderr)
        raise typer.Exit(130) from None
    _print_summary(report, run.page)
    if chat and sys.stdin.isatty() and sys.stdout.isatty():
        from ling.cli.chat import converse

        converse(llm)


def _resolve(run: RunDirectory, file: Path | None, overrides: list[str], *, resume: bool, restart: bool) -> "Recipe":
    """Return the recipe of this run; ConfigError if `run` has no room for it, or nothing to resume."""
    from ling.config.recipe import load_recipe

    if resume:
        resolved = run.read_recipe()
        if overrides or file or restart:
            raise ConfigError("--resume continues with the recipe the run began with; leave all other arguments out")
        return resolved
    resolved = load_recipe(preset_name=None if file else "demo", file=file, overrides=overrides)
    run.check_room(restart=restart)
    return resolved


def _print_summary(report: dict[str, Any], page: Path) -> None:
    console = Console()
    for title, rows in (("promise", report["promises"]), ("task", report["tasks"])):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in (title, "measured", "bound" if title == "promise" else "of", ""):
            table.add_column(column, justify="left" if column in (title, "") else "right")
        for row in rows:
            if title == "promise":
                mark = "[green]held[/]" if row["held"] else "[red]missed[/]"
                table.add_row(row["what"], row["measured"], row["bound"], mark)
            else:
                table.add_row(row["task"], f"{row['correct']}", f"{row['total']}", f"{row['percent']:.0f} %")
        console.print(table)
        console.print()
    if speculation := report["speculation"]:
        console.print(
            f"MTP drafting: {speculation['speedup']:.2f}x the speed of plain decoding, "
            f"{speculation['acceptance_percent']:.0f} % of drafts accepted"
        )
    else:
        console.print("MTP drafting: this model has no MTP layer")
    for sample in report["samples"]:  # Text: what a model says is no markup
        console.print(Text.assemble((sample["prompt"], "bold"), "  ", sample["answer"]))
    print(f"\nreport: {page}")
