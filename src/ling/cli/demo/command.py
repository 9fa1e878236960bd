"""The `ling demo` command: arguments, the run's directory, and what is printed at the end."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.config.recipe import Recipe

RECIPE_NAME = "recipe.json"
REPORT_NAME = "report.json"


def demo(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...")] = None,
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/demo"),
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe in place of the demo preset.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same as train.seed=N.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an interrupted run.")] = False,
    chat: Annotated[bool, typer.Option(help="Open a chat at the end, if there is a terminal.")] = True,
) -> None:
    """Train a small Ling MoE on real text, convert it, measure it, and talk to it. About five minutes; no download."""
    console = Console(stderr=True)
    resolved = _resolve(
        out,
        recipe,
        [*(overrides or []), *([f"train.seed={seed}"] if seed is not None else [])],
        resume,
        restart,
    )
    from ling.cli.demo.pipeline import run_pipeline

    try:
        report, llm = run_pipeline(resolved, out, console, resume=resume)
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; nothing is lost: continue with [bold]ling demo --resume{_out_flag(out)}[/]")
        raise typer.Exit(130) from None
    _print_summary(report, out)
    if chat and sys.stdin.isatty() and sys.stdout.isatty():
        from ling.cli.chat import converse

        converse(llm)


def _resolve(out: Path, file: Path | None, overrides: list[str], resume: bool, restart: bool) -> "Recipe":
    """Return the recipe of this run and leave `out` ready for it."""
    from ling.config.recipe import load_recipe, recipe_from_tree, recipe_tree

    stored = out / RECIPE_NAME
    if resume:
        if not stored.exists():
            raise ConfigError(f"there is no run to resume in {out}; start one with ling demo{_out_flag(out)}")
        if overrides or file:
            raise ConfigError("--resume continues with the recipe the run began with; leave other settings out")
        return recipe_from_tree(json.loads(stored.read_text(encoding="utf-8")))
    resolved = load_recipe(preset_name=None if file else "demo", file=file, overrides=overrides)
    if stored.exists():
        finished = (out / REPORT_NAME).exists()
        if not finished and not restart:
            raise ConfigError(
                f"{out} holds an interrupted run: continue it with ling demo --resume{_out_flag(out)}, "
                "or discard it with --restart"
            )
        _set_aside(out, keep=finished)
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and not a run of ling demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(recipe_tree(resolved), indent=2) + "\n", encoding="utf-8")
    return resolved


def _set_aside(out: Path, *, keep: bool) -> None:
    """Make room for a new run; a finished one stays beside it as NAME.previous."""
    if not keep:
        shutil.rmtree(out)
        return
    previous = out.with_name(f"{out.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    out.rename(previous)


def _out_flag(out: Path) -> str:
    return "" if out == Path("runs/demo") else f" --out {out}"


def _print_summary(report: dict[str, Any], out: Path) -> None:
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
    speculation = report["speculation"]
    console.print(
        f"MTP drafting: {speculation['speedup']:.2f}x the speed of plain decoding, "
        f"{speculation['acceptance_percent']:.0f} % of drafts accepted"
    )
    for sample in report["samples"]:
        console.print(f"[bold]{sample['prompt']}[/]  {sample['answer']}", highlight=False)
    console.print(f"\nreport: {out / 'report.html'}")
