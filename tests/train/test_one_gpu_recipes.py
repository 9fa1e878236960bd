"""The recipes for one GPU: they resolve, they are planned within it, and shrunk they train here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.train.test_in_backward import batches

from ling.cli.train.dry_run import describe
from ling.config import preset
from ling.config.recipe import Recipe, load_recipe
from ling.parallel.build import build_model
from ling.parallel.ranks import Ranks
from ling.scaling.hardware import hardware
from ling.scaling.layout import Layout, plan_layout
from ling.scaling.precision import PRECISIONS
from ling.scaling.search import Request, search
from ling.train.batch import TrainBatch
from ling.train.loop import Training

NAMES = ("cpt_mini_1gpu", "sft_mini_1gpu")
GIB = 2**30


def shrunk(name: str) -> Recipe:
    """Return a recipe with the tiny model in the place of its own, and otherwise as it is."""
    model = [f"model.{key}={json.dumps(value)}" for key, value in preset("tiny")["model"].items()]
    small = ["train.steps=4", "train.sequence_length=32", "train.global_batch_size=8", "train.checkpoint_every=2"]
    return load_recipe(file=Path(name), overrides=[*model, *small, "run.start_from=null", "optim.lr=1.0e-3"])


@pytest.mark.parametrize(
    ("name", "data", "gib"),
    [("cpt_mini_1gpu", "data.files=[corpus]", 72.7), ("sft_mini_1gpu", "finetune.data=[talks.jsonl]", 68.7)],
)
def test_it_is_planned_within_one_gpu_of_80_gb(name: str, data: str, gib: float) -> None:
    recipe = load_recipe(file=Path(name), overrides=[data])
    assert recipe.optim.in_backward
    assert recipe.train.fp8.measure_every  # which is part of the plan
    assert plan_layout(recipe.parallel, recipe.model, 1, recipe.train.sequence_length) == Layout(recompute="full")
    assert 16_384 <= recipe.train.micro_batch_size * recipe.train.sequence_length <= 32_768
    line = next(line for line in describe(recipe, Path("run")).splitlines() if line.startswith("memory:"))
    assert float(line.split()[1]) * 1e9 / GIB == pytest.approx(gib, abs=0.1)
    assert gib <= 74


def begin(recipe: Recipe, directory: Path) -> Training:
    """Return a run as `ling train` would begin it, with two microbatches a step."""
    ranks = Ranks(Layout(recompute="full"))
    generator = torch.Generator().manual_seed(recipe.train.seed)
    model = build_model(recipe.model, ranks, generator, recipe.train.compute_dtype, recipe.optim.weights)
    return Training(recipe, directory, two_microbatches, None, model, ranks)


def two_microbatches(step: int) -> list[TrainBatch]:
    return batches(step, 2)


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow)])
def test_shrunk_it_trains(tmp_path: Path, name: str) -> None:
    training = begin(replace(shrunk(name), train=replace(shrunk(name).train, steps=1)), tmp_path)
    before = {n: p.detach().clone() for n, p in training.state.model.named_parameters()}
    for report in training.run():
        assert report.loss < 10
        assert not report.skipped
    assert training.state.optimizer.updates == 1
    assert all(not torch.equal(p, before[n]) for n, p in training.state.model.named_parameters() if p.dim() > 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_shrunk_it_goes_on_with_the_same_bits_after_it_is_killed(tmp_path: Path, name: str) -> None:
    recipe = shrunk(name)
    whole = begin(recipe, tmp_path / "whole")
    losses = [report.loss for report in whole.run()]
    cut = begin(recipe, tmp_path / "cut")
    for report in cut.run():
        if report.step == 3:  # what is after the checkpoint of step 2 is lost
            cut.saved()
            break
    (tmp_path / "cut/checkpoints/step_000003").rename(tmp_path / "lost")
    resumed = begin(recipe, tmp_path / "cut")
    assert resumed.resume() == 2
    assert [report.loss for report in resumed.run()] == losses[2:]
    for key, tensor in whole.state.tensors().items():
        assert torch.equal(resumed.state.tensors()[key], tensor), key


def test_what_fits_a_gpu_of_24_gb_is_said() -> None:
    """LoRA beside weights in FP8 does, by the plan; all parameters do not."""
    recipe, device = load_recipe(file=Path("sft_mini_1gpu")), hardware("rtx4090")
    request = Request(gpus=1, sequence_length=4096, global_batch_size=4, micro_batch=4, fixed={})
    lora = search(recipe.model, request, PRECISIONS["lora_fp8"], device)
    assert lora.fitting
    assert lora.fitting[0].memory.peak.total < 21.7 * GIB
    assert lora.fitting[0].memory.resting.total == pytest.approx(15.8 * GIB, rel=0.01)
    assert not search(recipe.model, request, PRECISIONS["bfloat16"], device).fitting
