"""A run from its recipe to its last export: what `ling train` and `ling finetune` share."""

from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from ling.checkpoint import save_model
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.hub import resolve_checkpoint
from ling.checkpoint.pieces import PieceSource, open_pieces
from ling.checkpoint.save import ExportFormat
from ling.cli.demo.directory import RunDirectory
from ling.cli.train.data import Data, add_tokenizer, keep_tokenizer, open_data
from ling.cli.train.display import Display
from ling.cli.train.evaluate import Evaluation, summary
from ling.cli.train.profile import Profile
from ling.config.recipe import Recipe
from ling.distributed.process import Process, join_processes
from ling.engine.bundled import bundled_directory
from ling.errors import ConfigError
from ling.model import CausalLM, init_weights
from ling.optim.batch_ramp import BatchRamp
from ling.parallel.build import build_model
from ling.parallel.ranks import Ranks
from ling.scaling.layout import Layout, plan_layout
from ling.train.batch import TrainBatch
from ling.train.files import latest_checkpoint
from ling.train.loop import StepReport, Training
from ling.train.start import load_start
from ling.train.trackers import open_trackers
from ling.train.utilisation import find_peak

BUNDLED = "bundled"
"""Stands in `run.start_from` for the model in the package."""


def open_start(recipe: Recipe) -> PieceSource | None:
    """Open the checkpoint that a run begins with; None if it begins with new weights."""
    if recipe.run.start_from is None:
        return None
    if recipe.run.start_from == BUNDLED:
        return open_pieces(bundled_directory())
    return open_pieces(resolve_checkpoint(recipe.run.start_from))


def is_here(recipe: Recipe) -> bool:
    """Whether a run's start is on this machine, so that looking at it fetches nothing."""
    start = recipe.run.start_from
    return start is None or start == BUNDLED or Path(start).exists()


def run_training(recipe: Recipe, run: RunDirectory, *, resume: bool) -> None:
    """Train by `recipe` in `run`, from its start or from where it stopped; print where the model lies.

    Under torchrun every process calls this; the first one speaks and writes for all.
    """
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    # Which sharding does, on one rank as on many.
    rounds = recipe.train.compute_dtype != recipe.optim.weights
    with join_processes(_device(recipe), as_group=rounds) as process:
        layout = plan_layout(recipe.parallel, recipe.model, process.world_size, recipe.train.sequence_length)
        if recipe.finetune.data or recipe.data.files:
            at_once = layout.data_parallel * recipe.train.micro_batch_size
            BatchRamp.of(recipe.optim.batch_ramp, recipe.train.global_batch_size, at_once)
        ranks = None if layout == Layout() and not rounds else Ranks(layout, process.device)
        _run(recipe, run, process, ranks, resume=resume)


def _run(recipe: Recipe, run: RunDirectory, process: Process, ranks: Ranks | None, *, resume: bool) -> None:
    console = Console(stderr=True, highlight=False, quiet=not process.is_first)
    begun = resume and latest_checkpoint(run.checkpoints) is not None
    source = None if begun else open_start(recipe)
    model = _build(recipe, process, ranks)
    if source is not None:
        with console.status(f"reading {source.kind} {source.directory}"):
            for note in load_start(model, source):
                console.print(f"note: {note}")
    with process.first_alone():
        data = open_data(recipe, run.tokenizer if resume else None, source)
    recipe = data.adapt(recipe)
    trackers = open_trackers(recipe.run.track if process.is_first else (), run.path, asdict(recipe))
    if process.is_first:
        if not resume:
            run.begin(recipe)
        keep_tokenizer(data.tokenizer, run.tokenizer)
    run.begun = True
    process.wait_for_all()
    share = (ranks.data_rank, ranks.data_size) if ranks is not None else (0, 1)
    read_batches = partial(_read_batches, data, share)
    emulated = recipe.train.precision == "fp8" and process.device.type == "cpu"  # its products are float32's there
    if (peak := find_peak(process.device, "float32" if emulated else recipe.train.compute_dtype)) is not None:
        console.print(f"utilisation is of {peak.name}, per process")
    training = Training(
        recipe, run.path, read_batches, partial(add_tokenizer, data.tokenizer), model, ranks, data.fingerprint, peak
    )
    if resume and (done := training.resume()):
        console.print(f"continuing after step {done}")
    with process.first_alone():
        evaluation = Evaluation(run.path, data, model, training.state.step, writes=process.is_first)
    profile = Profile(recipe.run, run.path, process.rank)
    profile.between(training.state.step)
    precision = ExportFormat(precision=recipe.model.torch_dtype)
    with Display(console, recipe, training.state.step) as display:

        def between(step: int) -> dict[str, float]:
            """Do what is due after `step` steps and not done; return what was measured."""
            found: dict[str, float] = {}
            if _is_due(step, recipe.run.evaluate_every) and step not in evaluation.steps:
                found = evaluation.run(step)
                display.say(summary(step, found))
            target = run.path / "exports" / f"step_{step:06d}"
            if _is_due(step, recipe.run.export_every) and not target.exists():
                if training.state.sharded:
                    export(training.saved(), target)
                else:
                    save_model(model, target, export=precision, finish=data.tokenizer.save)
            return found

        def export(checkpoint: Path, target: Path) -> None:
            if process.is_first:
                to_safetensors(open_pieces(checkpoint), target, precision, overwrite=True)
            process.wait_for_all()

        between(training.state.step)  # of a step after whose checkpoint the run was killed
        recent: deque[StepReport] = deque(maxlen=display.SMOOTHED_STEPS)
        for report in training.run():
            recent.append(report)
            display.show(recent)
            if (trace := profile.between(report.step)) is not None:
                display.say(f"profile: {trace}")
            numbers = report.numbers() | between(report.step)
            for tracker in trackers:
                tracker.log(report.step, numbers)
    profile.end()
    for tracker in trackers:
        tracker.close()
    training.save_final(run.final)
    if recipe.run.export_last:
        export(run.final, run.export)
    if process.is_first:
        print(run.export if recipe.run.export_last else run.final)


def _build(recipe: Recipe, process: Process, ranks: Ranks | None) -> CausalLM:
    """Return new weights where they are trained: the whole model, or this rank's part."""
    generator = torch.Generator().manual_seed(recipe.train.seed)
    if ranks is not None:
        return build_model(recipe.model, ranks, generator, recipe.train.compute_dtype, recipe.optim.weights)
    model = init_weights(CausalLM(recipe.model), generator)
    return model.to(process.device, getattr(torch, recipe.optim.weights))


def _read_batches(data: Data, share: tuple[int, int], step: int) -> list[TrainBatch]:
    return data.read_batches(step, *share)


def _device(recipe: Recipe) -> str:
    if recipe.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device=cuda, but torch finds no GPU here; use run.device=cpu or auto")
    if recipe.run.device != "auto":
        return recipe.run.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_due(step: int, every: int) -> bool:
    return bool(every and step) and step % every == 0
