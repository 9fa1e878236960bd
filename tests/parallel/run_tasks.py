"""Whole runs on several ranks, by name."""

from pathlib import Path

import torch
from tests.parallel.parity import batches_of, whole
from torch import Tensor
from torch.distributed.tensor import DTensor

from ling.config.parallel import ParallelConfig
from ling.config.recipe import Recipe, load_recipe
from ling.errors import CheckpointError
from ling.model import CausalLM
from ling.parallel.build import build_model
from ling.parallel.ranks import Ranks
from ling.scaling.layout import plan_layout
from ling.train.batch import TrainBatch
from ling.train.loop import Training

STEPS = 6


def recipe_of(method: str) -> Recipe:
    more = [
        f"optim.method={method}", "optim.lr=0.01", "optim.eps=1e-4", "optim.warmup_steps=2", f"train.steps={STEPS}",
        "train.checkpoint_every=3", "train.average_last=2", "train.average_every=1", "run.keep_checkpoints=9",
        "train.tokens_per_step=512", "data.max_document_tokens=64",
    ]  # fmt: skip
    return load_recipe(preset_name="tiny", overrides=more)


def begin(directory: str, ranks: int, sizes: dict[str, int], method: str) -> Training:
    """Return a run that its ranks are about to begin, or to resume."""
    recipe = recipe_of(method)
    laid_out = Ranks(plan_layout(ParallelConfig(**sizes), recipe.model, ranks, 16)) if ranks > 1 else None
    share = (laid_out.data_rank, laid_out.data_size) if laid_out else (0, 1)

    def read_batches(step: int) -> list[TrainBatch]:
        return batches_of(step, True, recipe.model.num_nextn_predict_layers, *share, 1)

    generator = torch.Generator().manual_seed(recipe.train.seed)
    model: CausalLM | None = None if laid_out is None else build_model(recipe.model, laid_out, generator)
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
