"""From scratch: sixteen microbatches gathered in moments (AdamA) against plain AdamW on the same documents.

    python -m benchmarks.adama_gap [--steps N] [--seeds N] [--arms NAME ...] [--workers N] [--runs FILE]

`benchmarks.adama` trains a trained model on; here gradients still agree, where AdamA differs most from AdamW.

With `optim.in_backward` no gradient outlives its microbatch, so that squares are of each microbatch's gradient and not
of their sum: less by up to 16 times where microbatches agree, the same where they are noise. Beside it stands the way
around it, an update for each microbatch with rates that fit the smaller batch: of learning the root of 1/16, of decay
as much, so that a token decays as much, of expert biases 1/16; squares are remembered for as many tokens.

No arm clips: what a gradient is clipped by differs between them, and is not what is asked here.
"""

import argparse
import json
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.fp8_loss_gap import LAST, curve, heldout
from benchmarks.kept_runs import run_all
from benchmarks.results import HERE, describe_machine, save
from ling.cli.demo.prepare import Prepared, prepare
from ling.config.recipe import Recipe, load_recipe
from ling.model import CausalLM, init_weights
from ling.train.batch import TrainBatch, build_batch
from ling.train.state import TrainState
from ling.train.step import train_step

MICROBATCHES = 16
TOKENS_PER_STEP = 4096
BETA2 = 0.95
SHAPE = [
    "model.num_hidden_layers=3", "model.first_k_dense_replace=1", "model.num_experts=8", "model.n_group=4",
    "model.topk_group=2", "model.moe_intermediate_size=64", "model.num_nextn_predict_layers=0",
    "data.dialogue_fraction=0", f"train.tokens_per_step={TOKENS_PER_STEP}", "train.average_last=0",
    "optim.schedule=cosine", "optim.end_lr=2e-4", f"optim.beta2={BETA2}", "optim.clip_grad_norm=0",
]  # fmt: skip
"""Laid over the demo's recipe: its width, fewer layers and experts, and only the books."""
LR, DECAY, BIAS_RATE = 2e-3, 0.1, 1e-2

BASE = "AdamW"
GATHERED = ["optim.in_backward=true"]
ARMS: dict[str, list[str]] = {
    BASE: [],
    "AdamW, FP8 moments": ["optim.moments=fp8"],
    "AdamA": GATHERED,
    "AdamA, FP8 moments": [*GATHERED, "optim.moments=fp8"],
    "small batch, FP8 moments": [*GATHERED, "optim.moments=fp8", f"optim.beta2={BETA2 ** (1 / MICROBATCHES)}"],
}
SMALL = "small batch, FP8 moments"
BOUND_PERCENT = 0.5


def recipe_of(arm: str, seed: int, steps: int) -> Recipe:
    """Return what an arm is trained by; the one of small batches takes a step for each microbatch."""
    each = MICROBATCHES if arm == SMALL else 1
    rates = [
        f"optim.lr={LR / each**0.5}", f"optim.end_lr={LR / 10 / each**0.5}", f"optim.weight_decay={DECAY / each**0.5}",
        f"optim.expert_bias_update_rate={BIAS_RATE / each}", f"optim.warmup_steps={max(1, steps // 20) * each}",
        f"train.steps={steps * each}", f"train.seed={seed}",
    ]  # fmt: skip
    return load_recipe(preset_name="demo", overrides=[*SHAPE, *rates, *ARMS[arm]])


@cache
def prepared_for(seed: int, steps: int) -> Prepared:
    return prepare(recipe_of(BASE, seed, steps), None)


def microbatches(prepared: Prepared, step: int) -> list[TrainBatch]:
    """Return the documents of a step, dealt out evenly."""
    documents = prepared.mix.documents(step)
    parts = [documents[i::MICROBATCHES] for i in range(MICROBATCHES)]
    return [build_batch([d.tokens for d in part], [d.learnt for d in part], 0) for part in parts]


def train(arm: str, seed: int, steps: int) -> dict[str, Any]:
    recipe, prepared = recipe_of(arm, seed, steps), prepared_for(seed, steps)
    model = init_weights(CausalLM(recipe.model), torch.Generator().manual_seed(seed))
    state = TrainState(model, recipe.optim)
    began, losses = time.process_time(), []

    def update(step: int, batches: list[TrainBatch]) -> None:
        result = train_step(
            model, state.optimizer, batches, recipe, step, guard=state.guard, in_backward=state.in_backward
        )
        losses.append(float(result.losses.main))

    for step in range(steps):
        if arm == SMALL:
            for i, batch in enumerate(microbatches(prepared, step)):
                update(step * MICROBATCHES + i, [batch])
        else:
            update(step, microbatches(prepared, step) if recipe.optim.in_backward else prepared.read_batches(step))
    return {
        "last": statistics.fmean(losses[-max(1, round(LAST * len(losses))) :]),
        "heldout": heldout(model, prepared),
        "cpu_seconds": round(time.process_time() - began, 1),
        "curve": curve(losses),
    }


def compare(runs: dict[str, dict[str, Any]], seeds: int, key: str) -> dict[str, Any]:
    """Return the loss under `key` of each arm, and its gap to plain AdamW."""
    losses = {arm: [runs[f"{arm}, seed {s}"][key] for s in range(seeds)] for arm in ARMS if f"{arm}, seed 0" in runs}
    found: dict[str, Any] = {}
    for arm, values in losses.items():
        gaps = [100 * (value / b - 1) for value, b in zip(values, losses[BASE], strict=True)]
        mean = statistics.fmean(gaps)
        found[arm] = {"losses": values, "by_seed_percent": gaps, "gap_percent": mean, "held": mean <= BOUND_PERCENT}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=[a for a in ARMS if a != BASE], choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--runs", type=Path, default=HERE / "adama-gap-runs.json", help="keeps finished runs")
    asked = parser.parse_args()
    arms = dict.fromkeys([BASE, *asked.arms])
    tasks = {f"{arm}, seed {s}": (arm, s, asked.steps) for s in range(asked.seeds) for arm in arms}
    settings = {"steps": asked.steps, "microbatches": MICROBATCHES, "recipe": SHAPE}
    runs = run_all(tasks, train, asked.runs, settings, asked.workers)
    numbers: dict[str, Any] = {"tokens": asked.steps * TOKENS_PER_STEP, **settings}
    numbers |= {key: compare(runs, asked.seeds, key) for key in ("last", "heldout")}
    numbers["cpu_seconds"] = {name: run["cpu_seconds"] for name, run in runs.items()}
    print(json.dumps(numbers, indent=2))
    print(describe_machine())
    print(save("adama-gap", numbers).name)


if __name__ == "__main__":
    main()
