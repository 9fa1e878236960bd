"""Whole runs on several ranks, by name."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tests.parallel.parity import batches_of, whole
from torch import Tensor
from torch.distributed.tensor import DTensor

from ling.config.parallel import ParallelConfig
from ling.config.recipe import Recipe, load_recipe
from ling.errors import CheckpointError
from ling.model import CausalLM
from ling.model.fp8 import Fp8Layer
from ling.ops.fp8_linear import Watch
from ling.ops.fp8_tensor import Fp8Tensor
from ling.parallel.build import build_model
from ling.parallel.ranks import Ranks
from ling.scaling.layout import plan_layout
from ling.train.batch import TrainBatch
from ling.train.loop import Training

STEPS = 6


SMALL = ("train.precision=bfloat16", "optim.weights=bfloat16", "optim.moments=fp8")
RUNS: dict[str, tuple[str, ...]] = {
    "adamw": (),
    "muon": ("optim.method=muon",),
    "small": SMALL,
    "small in backward": (*SMALL, "optim.in_backward=true", "optim.clipping=lagged"),
    "plain": ("train.precision=bfloat16", "optim.weights=bfloat16"),
    "fp8": ("train.precision=fp8", "train.fp8.measure_every=2"),
    "bfloat16": ("train.precision=bfloat16",),
    "small leaving fp8": (
        "train.precision=fp8",
        *SMALL[1:],
        "train.fp8.measure_every=2",
        "train.fp8.max_distortion_percent=2.75",
    ),
}


def recipe_of(method: str) -> Recipe:
    more = [
        *RUNS[method], "optim.lr=0.01", "optim.eps=1e-4", "optim.warmup_steps=2", f"train.steps={STEPS}",
        "train.checkpoint_every=3", "train.average_last=2", "train.average_every=1", "run.keep_checkpoints=9",
        "train.tokens_per_step=512", "data.max_document_tokens=64",
    ]  # fmt: skip
    return load_recipe(preset_name="tiny", overrides=more)


def begin(directory: str, ranks: int, sizes: dict[str, int], method: str) -> Training:
    """Return a run that its ranks are about to begin, or to resume."""
    recipe = recipe_of(method)
    rounds = recipe.train.compute_dtype != recipe.optim.weights
    lay_out = rounds or ranks > 1
    laid_out = Ranks(plan_layout(ParallelConfig(**sizes), recipe.model, ranks, 16)) if lay_out else None
    share = (laid_out.data_rank, laid_out.data_size) if laid_out else (0, 1)

    def read_batches(step: int) -> list[TrainBatch]:
        return batches_of(step, True, recipe.model.num_nextn_predict_layers, *share, 1)

    generator = torch.Generator().manual_seed(recipe.train.seed)
    kept_in, computed_in = recipe.optim.weights, recipe.train.compute_dtype
    model: CausalLM | None = (
        None if laid_out is None else build_model(recipe.model, laid_out, generator, computed_in, kept_in)
    )
    return Training(recipe, Path(directory), read_batches, None, model, laid_out)


def run(directory: str, ranks: int, sizes: dict[str, int], method: str, stop_after: int = STEPS) -> list[float]:
    """Begin or go on, up to a step; return the losses."""
    training = begin(directory, ranks, sizes, method)
    training.resume()
    losses = []
    for report in training.run():
        losses.append(report.loss)
        if report.step == stop_after:
            break
    return losses


def run_measured(
    directory: str, ranks: int, sizes: dict[str, int], method: str, steps: int = 2
) -> tuple[list[float], list[dict[str, Any]], set[str]]:
    """Do some steps in FP8; return the losses, what each measurement found, and the operands that were quantised."""
    training = begin(directory, ranks, sizes, method)
    assert training.fp8 is not None
    operands: set[str] = set()
    for layer in training.fp8.layers:
        layer._note = partial(_note, operands, layer, layer._note)  # type: ignore[method-assign]
    reports = list(islice(training.run(), steps))
    found = [report.fp8._asdict() for report in reports if report.fp8 is not None]
    return [report.loss for report in reports], found, operands


def _note(operands: set[str], layer: Fp8Layer, note: Watch, name: str, values: Any, codes: Fp8Tensor) -> None:
    operands.add(f"{layer.name} {name} {codes.codes.dtype}")
    note(name, values, codes)


def held(directory: str, ranks: int, sizes: dict[str, int], method: str) -> tuple[int, dict[str, Tensor], int]:
    """Resume; return the step, every tensor of the state made whole, and the bytes of them that this rank holds."""
    training = begin(directory, ranks, sizes, method)
    step = training.resume()
    tensors = training.state.tensors()
    here = [t.to_local() if isinstance(t, DTensor) else t for t in tensors.values()]
    size = sum(t.numel() * t.element_size() for t in here)
    return step, {name: whole(tensor) for name, tensor in tensors.items()}, size


def save_where_the_tokenizer_cannot_be_written(directory: str) -> str:
    """Save a checkpoint whose last file fails on the first rank; return what this rank is told."""
    training = begin(directory, 2, {"expert": 2}, "adamw")

    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    training.finish = fail
    try:
        training.save()
    except CheckpointError as error:
        return str(error)
    return "saved"
