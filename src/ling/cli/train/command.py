"""The `ling train` command: a recipe, a directory, and what happens between its steps."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ling.cli.demo.directory import RunDirectory
from ling.errors import ConfigError

DEFAULT_OUT = Path("runs/train")
_MAY_CHANGE = ("run.", "parallel.")
"""What a resumed run may be told anew: it does not change what is computed."""


def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a recipe in the package.", metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...")] = None,
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = DEFAULT_OUT,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
) -> None:
    """Train a model by a recipe: from new weights, or from any checkpoint (run.start_from).

    Ctrl-C and SIGTERM let the step end and leave a checkpoint; --resume goes on from it, to the same bits.
    """
    run = RunDirectory(out, "train", DEFAULT_OUT, first=shlex.quote(recipe))
    begin(run, recipe, overrides or [], resume=resume, restart=restart, dry_run=dry_run)


def begin(
    run: RunDirectory, recipe: str | None, overrides: list[str], *, resume: bool, restart: bool, dry_run: bool
) -> None:
    """Resolve a recipe and run it, or say what it would do; the exit code says how it ended."""
    from ling.cli.train.running import is_here, open_start, run_training
    from ling.config.recipe import load_recipe

    file = None if recipe is None else Path(recipe)
    if resume:
        if fixed := [text for text in overrides if not text.startswith(_MAY_CHANGE)]:
            raise ConfigError(
                f"--resume continues with the recipe the run began with; leave out {fixed[0]} "
                "(only run.* and parallel.* may change)"
            )
        resolved = run.read_recipe(overrides)
    else:
        resolved = load_recipe(file=file, overrides=overrides)
        fetched = not dry_run or is_here(resolved)
        if fetched and (source := open_start(resolved)) is not None:
            resolved = load_recipe(file=file, overrides=overrides, model=source.config)
        run.check_room(restart=restart)
    if dry_run:
        from ling.cli.train.dry_run import describe

        print(describe(resolved, run.path))
        return
    from ling.distributed.process import speaks
    from ling.train.interrupt import Terminated

    try:
        run_training(resolved, run, resume=resume)
    except KeyboardInterrupt as stopped:
        if speaks():
            print(f"\nstopped; {run.how_to_go_on()}", file=sys.stderr)
        raise typer.Exit(0 if isinstance(stopped, Terminated) else 130) from None
