"""The `ling train` command: a recipe, a directory, and what happens between its steps."""

import sys
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ling.cli.demo.directory import RunDirectory
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.checkpoint.pieces import PieceSource
    from ling.config.recipe import Recipe
    from ling.train.loop import StepReport

DEFAULT_OUT = Path("runs/train")


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
    run = RunDirectory(out, "train", DEFAULT_OUT, first=recipe)
    source: PieceSource | None = None
    if resume:
        if overrides:
            raise ConfigError("--resume continues with the recipe the run began with; leave the overrides out")
        resolved = run.read_recipe()
    else:
        resolved, source = _resolve(recipe, overrides or [])
        run.check_room(restart=restart)
    if dry_run:
        from ling.cli.train.dry_run import describe

        print(describe(resolved, run.path))
        return
    from ling.train.interrupt import Terminated

    try:
        _run(resolved, run, source, resume=resume)
    except KeyboardInterrupt as stopped:
        print(f"\nstopped; {run.how_to_go_on()}", file=sys.stderr)
        raise typer.Exit(0 if isinstance(stopped, Terminated) else 130) from None


def _resolve(recipe: str, overrides: list[str]) -> "tuple[Recipe, PieceSource | None]":
    """Return the recipe, and the checkpoint it begins with, whose model stands below the recipe's."""
    from ling.config.recipe import load_recipe

    resolved = load_recipe(file=Path(recipe), overrides=overrides)
    if resolved.run.start_from is None:
        return resolved, None
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.checkpoint.pieces import open_pieces

    source = open_pieces(resolve_checkpoint(resolved.run.start_from))
    return load_recipe(file=Path(recipe), overrides=overrides, model=source.config), source


def _run(recipe: "Recipe", run: RunDirectory, source: "PieceSource | None", *, resume: bool) -> None:
    import torch

    from ling.checkpoint import save_model
    from ling.checkpoint.convert import to_safetensors
    from ling.checkpoint.pieces import open_pieces
    from ling.checkpoint.save import ExportFormat
    from ling.cli.train.data import open_data
    from ling.cli.train.display import Display
    from ling.cli.train.evaluate import Evaluation
    from ling.cli.train.profile import Profile
    from ling.model import CausalLM, init_weights
    from ling.train.loop import Training
    from ling.train.start import load_start
    from ling.train.trackers import open_trackers

    console = Console(stderr=True, highlight=False)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    trackers = open_trackers(recipe.run.track, run.path, asdict(recipe))
    model = init_weights(CausalLM(recipe.model), torch.Generator().manual_seed(recipe.train.seed))
    if source is not None:
        with console.status(f"reading {source.kind} {source.directory}"):
            for note in load_start(model, source):
                console.print(f"note: {note}")
    model.to(_device(recipe))
    data = open_data(recipe, run.tokenizer if resume else None, source)
    if not resume:
        run.begin(recipe)
    data.keep_tokenizer(run.tokenizer)
    training = Training(recipe, run.path, data.read_batches, data.add_tokenizer, model)
    if resume and (done := training.resume()):
        console.print(f"continuing after step {done}")
    evaluation, profile = Evaluation(recipe, run.path, data, training), Profile(recipe.run, run.path)
    profile.between(training.state.step)
    with Display(console, recipe, training.state.step) as display:
        recent: deque[StepReport] = deque(maxlen=display.SMOOTHED_STEPS)
        for report in training.run():
            recent.append(report)
            display.show(recent)
            if (trace := profile.between(report.step)) is not None:
                display.say(f"profile: {trace}")
            numbers = report.numbers()
            if _is_due(report.step, recipe.run.evaluate_every):
                numbers |= evaluation.run(report.step)
                display.say(evaluation.summary())
            for tracker in trackers:
                tracker.log(report.step, numbers)
            if _is_due(report.step, recipe.run.export_every):
                save_model(
                    model, run.path / "exports" / f"step_{report.step:06d}", overwrite=True,
                    export=ExportFormat(precision=recipe.model.torch_dtype), finish=data.tokenizer.save,
                )  # fmt: skip
    profile.end()
    for tracker in trackers:
        tracker.close()
    training.save_final(run.final)
    if recipe.run.export_last:
        precision = ExportFormat(precision=recipe.model.torch_dtype)
        to_safetensors(open_pieces(run.final), run.export, precision, overwrite=True)
        print(run.export)
    else:
        print(run.final)


def _device(recipe: "Recipe") -> str:
    import torch

    if recipe.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device=cuda, but torch finds no GPU here; use run.device=cpu or auto")
    if recipe.run.device != "auto":
        return recipe.run.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
