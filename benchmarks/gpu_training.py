"""Training on one GPU: all of Ling-mini as its recipe says, dense models by the same code, FP8 beside bfloat16.

Weights are new and the text is the books in the package, so that the loss has somewhere to fall. FP8 and bfloat16 are
the same state in the same run: layers leave FP8 between two series of steps.
"""

import gc
import statistics
from functools import cache
from typing import Any

import torch

from benchmarks import gpu_items
from benchmarks.gpu_items import ceilings, timed
from benchmarks.plain_recipe import plain_recipe
from ling.config.recipe import Recipe
from ling.data.books import BookTokens, split_books
from ling.data.mix import Mix
from ling.engine.bundled import bundled_directory
from ling.model import CausalLM
from ling.model.fp8 import Fp8Layers
from ling.parallel.build import build_model
from ling.parallel.ranks import Ranks
from ling.scaling.flops import count_flops
from ling.scaling.layout import Layout
from ling.scaling.published import reproduce_table
from ling.tokenizer import Tokenizer
from ling.train.batch import TrainBatch, build_batch
from ling.train.state import TrainState
from ling.train.step import train_step

RECIPE = "cpt_mini_1gpu"
SHRINK: list[str] = []
"""Laid over every network: for where there is no GPU."""
STEPS = 5
"""Timed, after two that are not."""
MOST_GIB, LEAST_TOKENS_PER_SECOND, LEAST_WITH_MTP = 74, 20_000, 15_000
GAP_TOKENS, GAP_TOKENS_PER_STEP, GAP_PERCENT = 200_000_000, 65_536, 0.25
PUBLISHED_GPUS = 8


class Run:
    """A network on the GPU, with its optimizer and the steps it has done."""

    def __init__(self, recipe: Recipe, *, recompute: bool, seed: int = 0) -> None:
        self.recipe = recipe
        self.ranks = Ranks(Layout(recompute="full" if recompute else "none"), gpu_items.DEVICE)
        generator = torch.Generator(gpu_items.DEVICE).manual_seed(seed)
        precision, weights = recipe.train.compute_dtype, recipe.optim.weights
        self.network: CausalLM = build_model(recipe.model, self.ranks, generator, precision, weights)
        self.state = TrainState(self.network, recipe.optim, ranks=self.ranks)
        self.fp8 = Fp8Layers(self.network, recipe.train.fp8) if recipe.train.precision == "fp8" else None
        self.losses: list[float] = []

    def step(self, batch: TrainBatch) -> None:
        state, number = self.state, len(self.losses)
        result = train_step(
            self.network, state.optimizer, [batch.to(gpu_items.DEVICE)], self.recipe, number, self.ranks, state.guard,
            in_backward=state.in_backward,
        )  # fmt: skip
        self.losses.append(float(result.losses.main))


def mini() -> dict[str, Any]:
    """Train Ling-mini without MTP, in FP8 and in bfloat16."""
    return {**(found := train("ling_mini", 0)), **_beside(found, LEAST_TOKENS_PER_SECOND)}


def mini_with_mtp() -> dict[str, Any]:
    """Train Ling-mini with an MTP layer, in FP8 and in bfloat16."""
    return {**(found := train("ling_mini", 1)), **_beside(found, LEAST_WITH_MTP)}


def llama() -> dict[str, Any]:
    """Train the shape of Llama-3.1-8B by the same code."""
    return {**(found := train("llama31_8b", 0)), **_against_mini("llama31_8b", found)}


def qwen() -> dict[str, Any]:
    """Train the shape of Qwen3-8B by the same code."""
    return {**(found := train("qwen3_8b", 0)), **_against_mini("qwen3_8b", found)}


@cache
def train(name: str, mtp: int) -> dict[str, Any]:
    """Return what steps of the one-GPU recipe do for a network: with FP8 products, then with bfloat16 ones."""
    _free()
    changes = [f"model.num_nextn_predict_layers={mtp}", "optim.lr=3e-4", *SHRINK]
    found = _steps(plain_recipe(RECIPE, changes, preset_name=name))
    _free()
    return found


def small_ling_gap() -> dict[str, Any]:
    """Train a small Ling on 200 million tokens in FP8, in bfloat16, and in bfloat16 from a weight that is a bit off."""
    from benchmarks.fp8_loss_gap import LAST, WIDE

    _free()
    steps = max(1, GAP_TOKENS // GAP_TOKENS_PER_STEP)
    changes = [
        *WIDE, "data.dialogue_fraction=0.7", f"train.tokens_per_step={GAP_TOKENS_PER_STEP}", f"train.steps={steps}",
        f"optim.warmup_steps={steps // 20}", *SHRINK,
    ]  # fmt: skip
    runs = {
        arm: Run(
            plain_recipe(None, [*changes, f"train.precision={arm.split()[0]}"], preset_name="demo"), recompute=False
        )
        for arm in ("bfloat16", "fp8", "bfloat16 perturbed")
    }
    weight = runs["bfloat16 perturbed"].network.model.norm.weight
    with torch.no_grad():
        weight[1] = torch.nextafter(weight[1], torch.full_like(weight[1], torch.inf))
    mix = _mix(runs["fp8"].recipe)
    for step in range(steps):
        documents = mix.documents(step)
        batch = build_batch([d.tokens for d in documents], [d.learnt for d in documents], 0)
        for run in runs.values():
            if run.fp8 is not None:
                run.fp8.begin(step)
            run.step(batch)
            if run.fp8 is not None:
                run.fp8.judge(step)
    last = {arm: statistics.fmean(run.losses[-max(1, round(LAST * steps)) :]) for arm, run in runs.items()}
    gap = 100 * (last["fp8"] / last["bfloat16"] - 1)
    fp8 = runs["fp8"].fp8
    return {
        "steps": steps,
        "tokens": steps * GAP_TOKENS_PER_STEP,
        "fp8_loss": last["fp8"],
        "bf16_loss": last["bfloat16"],
        "gap_percent": round(gap, 4),
        "perturbed_gap_percent": round(100 * (last["bfloat16 perturbed"] / last["bfloat16"] - 1), 4),
        "held": gap <= GAP_PERCENT,
        "layers_that_left_fp8": 0 if fp8 is None else len(fp8.in_bfloat16),
    }


def _steps(recipe: Recipe) -> dict[str, Any]:
    run = Run(recipe, recompute=True)
    B, S = recipe.train.micro_batch_size, recipe.train.sequence_length
    text = iter(_books(recipe, 2 * (STEPS + 2)))
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in run.network.parameters()), "tokens_at_once": B * S}
    flops = count_flops(recipe.model, S).training * B * S
    for kind in ("fp8", "bf16"):
        for layer in [] if run.fp8 is None else run.fp8.layers:
            layer.is_fp8 = kind == "fp8"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(timed(lambda: run.step(next(text)), STEPS))
        found |= {
            f"{kind}_tokens_per_second": round(B * S / seconds),
            f"{kind}_ms": round(1e3 * seconds, 1),
            f"{kind}_tflops": round(flops / seconds / 1e12, 1),
            f"{kind}_percent_of_bf16_matmul": round(100 * flops / seconds / 1e12 / ceilings()["bf16_matmul_tflops"], 1),
            f"{kind}_max_memory_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        }
    found["fp8_over_bf16"] = round(found["fp8_tokens_per_second"] / found["bf16_tokens_per_second"], 3)
    first, last = run.losses[0], run.losses[-1]
    return found | {"first_loss": first, "last_loss": last, "loss_falls": last < first}


def _beside(found: dict[str, Any], least: int) -> dict[str, Any]:
    """Return whether the targets are met."""
    memory, speed = found["fp8_max_memory_reserved_gib"], found["fp8_tokens_per_second"]
    return {"memory_held": memory <= MOST_GIB, "target_tokens_per_second": least, "speed_held": speed >= least}


def _against_mini(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return how much faster Ling-mini is, with MTP and without, here and as published."""
    published = {(r.model, r.mtp_layers): r.published for r in reproduce_table() if r.gpus == PUBLISHED_GPUS}
    ratios: dict[str, Any] = {}
    for key, mtp in (("mini_over_this", 0), ("mini_with_mtp_over_this", 1)):
        speed = train("ling_mini", mtp)["fp8_tokens_per_second"]
        ratios[key] = round(speed / found["fp8_tokens_per_second"], 2)
        ratios[f"{key}_published"] = round(published["ling_mini", mtp] / published[name, 0], 2)
    return ratios


def _mix(recipe: Recipe) -> Mix:
    tokenizer = Tokenizer.from_directory(bundled_directory())
    return Mix(recipe, BookTokens(split_books(recipe.data.heldout_percent)[0], tokenizer), tokenizer)


def _books(recipe: Recipe, steps: int) -> list[TrainBatch]:
    """Return steps of whole sequences of the books; a network's vocabulary may be larger than their tokenizer's."""
    tokenizer = Tokenizer.from_directory(bundled_directory())
    S, B, ids = recipe.train.sequence_length, recipe.train.micro_batch_size, list[int]()
    for book in split_books(1.0)[0]:
        ids += tokenizer.encode(book, special=False)
        if len(ids) >= steps * B * S:
            break
    depth, V = recipe.model.num_nextn_predict_layers, recipe.model.vocab_size
    rows = [[token % V for token in ids[i * S : (i + 1) * S]] for i in range(steps * B)]
    return [build_batch(rows[i : i + B], [[True] * S] * B, depth) for i in range(0, len(rows), B)]


def _free() -> None:
    gpu_items.mini.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
