"""A short run on one GPU beside the same run on the CPU: plain, sharded over the one rank there is, and in bfloat16."""

import random
from pathlib import Path

import pytest
import torch
from benchmarks.plain_recipe import plain_recipe

from ling.config.model import DType
from ling.distributed.process import join_processes
from ling.model import CausalLM, init_weights
from ling.parallel.build import build_model
from ling.parallel.ranks import Ranks
from ling.scaling.layout import Layout
from ling.train.batch import TrainBatch, build_batch
from ling.train.loop import Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

OVERRIDES = [
    "train.steps=6", "train.checkpoint_every=2", "train.average_last=0", "optim.lr=1e-3", "optim.warmup_steps=2",
    "optim.eps=1e-4",
]  # fmt: skip


def read_batches(step: int) -> list[TrainBatch]:
    draw = random.Random(step)
    return [
        build_batch([[draw.randrange(2, 120) for _ in range(24)] for _ in range(4)], [[True] * 24] * 4, 1)
        for _ in range(2)
    ]


def losses(directory: Path, device: str, precision: DType = "float32", *, sharded: bool = False) -> list[float]:
    """Train, or go on; return the losses of the steps that were done."""
    recipe = plain_recipe(None, [*OVERRIDES, f"train.precision={precision}"], preset_name="tiny")
    generator = torch.Generator().manual_seed(0)
    with join_processes(device, as_group=sharded) as process:
        ranks = Ranks(Layout(), process.device) if sharded else None
        model = (
            init_weights(CausalLM(recipe.model), generator).to(process.device)
            if ranks is None
            else build_model(recipe.model, ranks, generator, precision)
        )
        training = Training(recipe, directory, read_batches, model=model, ranks=ranks)
        training.resume()
        return [report.loss for report in training.run()]


@pytest.mark.parametrize(
    ("precision", "sharded", "tolerance"), [("float32", False, 1e-4), ("float32", True, 1e-4), ("bfloat16", True, 1e-2)]
)
def test_a_run_on_the_gpu_follows_the_one_on_the_cpu(
    tmp_path: Path, precision: DType, sharded: bool, tolerance: float
) -> None:
    expected = losses(tmp_path / "cpu", "cpu")
    found = losses(tmp_path / "gpu", "cuda", precision, sharded=sharded)
    assert found == pytest.approx(expected, rel=tolerance)


def test_a_checkpoint_written_in_the_background_from_the_gpu_is_gone_on_from_on_the_cpu(tmp_path: Path) -> None:
    whole = losses(tmp_path / "whole", "cpu")
    losses(tmp_path / "run", "cuda", sharded=True)
    for late in (tmp_path / "run/checkpoints").glob("step_000006"):
        late.rename(tmp_path / "lost")
    assert losses(tmp_path / "run", "cpu") == pytest.approx(whole[4:], rel=1e-4)


def test_weights_are_drawn_where_the_generator_is() -> None:
    """All of Ling-mini would take minutes on a CPU."""
    recipe = plain_recipe(None, ["train.precision=float32"], preset_name="tiny")
    model = build_model(recipe.model, Ranks(Layout(), "cuda"), torch.Generator("cuda").manual_seed(0))
    deviation = model.lm_head.weight.std().item()
    assert deviation == pytest.approx(recipe.model.initializer_range, rel=0.1)
