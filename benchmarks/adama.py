"""Sixteen microbatches that go into the moments one by one (AdamA) against plain AdamW over the same batch.

    python -m benchmarks.adama [--steps N] [--seeds N] [--microbatches N] [--arms NAME ...]

The trained model in the package is trained on at 3e-5 to 3e-6, a cosine, as continued pre-training does. Every arm
computes in float32 from the same weights on the same batches; losses are of documents that come after those trained on.
The second moment of AdamA takes up the sum of the microbatches' squared gradients, not the square of their sum: where
gradients agree it is smaller, by up to the number of microbatches, and updates are larger, by up to the root of that.
`update_ratio` is how far the weights went beside plain AdamW's.
"""

import argparse
import json
import math
import statistics
import time
from typing import Any

import torch

from benchmarks.results import describe_machine, save
from benchmarks.small_state import measure
from ling.checkpoint import load_model
from ling.cli.demo.prepare import Prepared, prepare
from ling.config.recipe import Recipe, load_recipe
from ling.engine.bundled import bundled_directory
from ling.train.state import TrainState
from ling.train.step import train_step

BASE = "AdamW"
ARMS: dict[str, list[str]] = {
    BASE: [],
    "AdamA": ["optim.in_backward=true", "optim.clipping=lagged"],
    "AdamA, FP8 moments": ["optim.in_backward=true", "optim.clipping=lagged", "optim.moments=fp8"],
    "AdamA, FP8 moments, updates clipped": [
        "optim.in_backward=true", "optim.clipping=update", "optim.moments=fp8",
    ],
    "AdamW, FP8 moments": ["optim.moments=fp8"],
}  # fmt: skip
BOUND_PERCENT = 0.5
TOKENS = 512
"""Of a microbatch, at most."""


def recipe_of(seed: int, steps: int, arm: str) -> Recipe:
    overrides = [
        "optim.lr=3e-5", "optim.end_lr=3e-6", "optim.schedule=cosine", "optim.warmup_steps=0", "train.average_last=0",
        f"train.steps={steps}", f"train.tokens_per_step={TOKENS}", f"train.seed={2000 + seed}",
        "data.dialogue_fraction=0.7", "optim.expert_bias_update_rate=1e-4", *ARMS[arm],
    ]  # fmt: skip
    return load_recipe(preset_name="demo", overrides=overrides)


def run(recipe: Recipe, prepared: Prepared, microbatches: int) -> dict[str, Any]:
    """Train; `prepared` gives one microbatch a step, of which a step here takes several that follow each other."""
    model = load_model(bundled_directory(), dtype=torch.float32)
    first = [p.detach().clone() for p in model.parameters()]
    state = TrainState(model, recipe.optim)
    last = recipe.train.steps * microbatches
    before, began = measure(model, prepared, last), time.perf_counter()
    for step in range(recipe.train.steps):
        found = [b for i in range(microbatches) for b in prepared.read_batches(step * microbatches + i)]
        train_step(model, state.optimizer, found, recipe, step, in_backward=state.in_backward)
    moved = sum(float((p.detach() - w).square().sum()) for p, w in zip(model.parameters(), first, strict=True))
    return {
        "before": before, "after": measure(model, prepared, last), "moved": math.sqrt(moved),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--arms", nargs="+", default=[arm for arm in ARMS if arm != BASE], choices=list(ARMS))
    asked = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (BASE, *asked.arms)}
    for seed in range(asked.seeds):
        prepared = prepare(recipe_of(seed, asked.steps, BASE), bundled_directory())
        for arm, found in results.items():
            found.append(run(recipe_of(seed, asked.steps, arm), prepared, asked.microbatches))
            print(f"seed {seed}, {arm}: {json.dumps(found[-1])}", flush=True)
    arms: dict[str, Any] = {}
    for arm in asked.arms:
        pairs = list(zip(results[arm], results[BASE], strict=True))
        gap = statistics.fmean(100 * (r["after"] / b["after"] - 1) for r, b in pairs)
        arms[arm] = {
            "gap_percent": gap,
            "held": abs(gap) <= BOUND_PERCENT,
            "update_ratio": statistics.fmean(r["moved"] / b["moved"] for r, b in pairs),
        }
    print(json.dumps(arms, indent=2))
    print(describe_machine())
    settings = {"steps": asked.steps, "microbatches": asked.microbatches, "tokens_per_microbatch": TOKENS}
    print(save("adama", settings | {"runs": results, "arms": arms}).name)


if __name__ == "__main__":
    main()
