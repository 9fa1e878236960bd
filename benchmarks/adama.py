"""Sixteen microbatches gathered in moments (AdamA) against plain AdamW on the same documents.

    python -m benchmarks.adama [--start scratch|trained] [--steps N] [--seeds N] [--arms NAME ...] [--workers N]
                               [--runs FILE]

With `optim.in_backward` no gradient outlives its microbatch, so that squares are of each microbatch's gradient and not
of their sum: less by up to 16 times where microbatches agree, the same where they are noise; updates are larger by up
to 4 times. From scratch gradients still agree, and AdamA differs most. Beside it stands the way around it, an update
for each microbatch with rates that fit the smaller batch: of learning the root of 1/16, of decay as much, so that a
token decays as much, of expert biases 1/16; squares are remembered for as many tokens.

`--start trained` trains the model in the package on at 3e-5 to 3e-6, as continued pre-training does, and clips; there
`moved` is how far the weights went. From scratch nothing clips: what a gradient is clipped by differs between arms.
"""

import argparse
import json
import math
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.fp8_loss_gap import LAST, curve, heldout
from benchmarks.kept_runs import read_kept, run_all
from benchmarks.results import HERE, describe_machine, save
from benchmarks.small_state import measure
from ling.checkpoint import load_model
from ling.cli.demo.prepare import Prepared, prepare
from ling.config.recipe import Recipe, load_recipe
from ling.engine.bundled import bundled_directory
from ling.model import CausalLM, init_weights
from ling.train.batch import TrainBatch, build_batch
from ling.train.state import TrainState
from ling.train.step import train_step

MICROBATCHES = 16
TOKENS_PER_STEP = 4096
BETA2 = 0.95
SCRATCH = [
    "model.num_hidden_layers=3", "model.first_k_dense_replace=1", "model.num_experts=8", "model.n_group=4",
    "model.topk_group=2", "model.moe_intermediate_size=64", "model.num_nextn_predict_layers=0",
    "data.dialogue_fraction=0", f"train.tokens_per_step={TOKENS_PER_STEP}", "train.average_last=0",
    "optim.schedule=cosine", "optim.end_lr=2e-4", f"optim.beta2={BETA2}", "optim.clip_grad_norm=0",
]  # fmt: skip
"""Laid over the demo's recipe: its width, fewer layers and experts, and only the books."""
TRAINED_TOKENS = 512
"""Of a microbatch of the trained model, at most."""
TRAINED = [
    "optim.lr=3e-5", "optim.end_lr=3e-6", "optim.schedule=cosine", "optim.warmup_steps=0", "train.average_last=0",
    f"train.tokens_per_step={TRAINED_TOKENS}", "data.dialogue_fraction=0.7", "optim.expert_bias_update_rate=1e-4",
]  # fmt: skip
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


def recipe_of(start: str, arm: str, seed: int, steps: int) -> Recipe:
    """Return what an arm is trained by; the one of small batches takes a step for each microbatch."""
    if start == "trained":
        clips = ["optim.clipping=lagged"] if "optim.in_backward=true" in ARMS[arm] else []
        changes = [*TRAINED, f"train.steps={steps}", f"train.seed={2000 + seed}", *ARMS[arm], *clips]
        return load_recipe(preset_name="demo", overrides=changes)
    each = MICROBATCHES if arm == SMALL else 1
    rates = [
        f"optim.lr={LR / each**0.5}", f"optim.end_lr={LR / 10 / each**0.5}", f"optim.weight_decay={DECAY / each**0.5}",
        f"optim.expert_bias_update_rate={BIAS_RATE / each}", f"optim.warmup_steps={max(1, steps // 20) * each}",
        f"train.steps={steps * each}", f"train.seed={seed}",
    ]  # fmt: skip
    return load_recipe(preset_name="demo", overrides=[*SCRATCH, *rates, *ARMS[arm]])


@cache
def prepared_for(start: str, seed: int, steps: int) -> Prepared:
    return prepare(recipe_of(start, BASE, seed, steps), bundled_directory() if start == "trained" else None)


def microbatches(start: str, prepared: Prepared, step: int) -> list[TrainBatch]:
    """Return the documents of a step, dealt out evenly; of the trained model, those of steps that follow each other."""
    if start == "trained":
        return [b for i in range(MICROBATCHES) for b in prepared.read_batches(step * MICROBATCHES + i)]
    documents = prepared.mix.documents(step)
    parts = [documents[i::MICROBATCHES] for i in range(MICROBATCHES)]
    return [build_batch([d.tokens for d in part], [d.learnt for d in part], 0) for part in parts]


def train(start: str, arm: str, seed: int, steps: int) -> dict[str, Any]:
    recipe, prepared = recipe_of(start, arm, seed, steps), prepared_for(start, seed, steps)
    if start == "trained":
        model = load_model(bundled_directory(), dtype=torch.float32)
    else:
        model = init_weights(CausalLM(recipe.model), torch.Generator().manual_seed(seed))
    first = [p.detach().clone() for p in model.parameters()]
    state = TrainState(model, recipe.optim)
    began, losses = time.process_time(), []

    def update(step: int, batches: list[TrainBatch]) -> None:
        result = train_step(
            model, state.optimizer, batches, recipe, step, guard=state.guard, in_backward=state.in_backward
        )
        losses.append(float(result.losses.main))

    for step in range(steps):
        if arm == SMALL:
            for i, batch in enumerate(microbatches(start, prepared, step)):
                update(step * MICROBATCHES + i, [batch])
        else:
            is_cut = start == "trained" or recipe.optim.in_backward
            update(step, microbatches(start, prepared, step) if is_cut else prepared.read_batches(step))
    moved = sum(float((p.detach() - w).square().sum()) for p, w in zip(model.parameters(), first, strict=True))
    after = measure(model, prepared, steps * MICROBATCHES) if start == "trained" else heldout(model, prepared)
    return {
        "last": statistics.fmean(losses[-max(1, round(LAST * len(losses))) :]),
        "heldout": after,
        "moved": math.sqrt(moved),
        "cpu_seconds": round(time.process_time() - began, 1),
        "curve": curve(losses),
    }


def compare(runs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    """Return the loss under `key` of each arm, and its gap to plain AdamW, over the seeds that both have."""
    found: dict[str, Any] = {}
    seeds = [name.removeprefix(f"{BASE}, seed ") for name in runs if name.startswith(f"{BASE}, seed ")]
    for arm in ARMS:
        values = {s: runs[f"{arm}, seed {s}"][key] for s in seeds if f"{arm}, seed {s}" in runs}
        if values:
            gaps = [100 * (value / runs[f"{BASE}, seed {s}"][key] - 1) for s, value in values.items()]
            mean = statistics.fmean(gaps)
            found[arm] = {
                "losses": list(values.values()), "by_seed_percent": gaps, "gap_percent": mean,
                "held": mean <= BOUND_PERCENT,
            }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", choices=["scratch", "trained"], default="scratch")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--runs", type=Path, help="keeps finished runs")
    asked = parser.parse_args()
    is_trained = asked.start == "trained"
    arms = dict.fromkeys([BASE, *(asked.arms or (a for a in ARMS if not (is_trained and a == SMALL)))])
    if is_trained and SMALL in arms:
        parser.error(f"{SMALL!r} starts from scratch alone")
    tasks = {f"{arm}, seed {s}": (asked.start, arm, s, asked.steps) for s in range(asked.seeds) for arm in arms}
    settings = {"steps": asked.steps, "microbatches": MICROBATCHES, "recipe": TRAINED if is_trained else SCRATCH}
    item = "adama-trained" if is_trained else "adama"
    file = asked.runs or HERE / f"{item}-runs.json"
    run_all(tasks, train, file, settings, asked.workers)
    runs = read_kept(file, settings)  # also those that were asked for before
    numbers: dict[str, Any] = {
        "tokens": asked.steps * (TRAINED_TOKENS * MICROBATCHES if is_trained else TOKENS_PER_STEP),
        **settings,
    }
    numbers |= {key: compare(runs, key) for key in ("last", "heldout")}
    numbers["cpu_seconds"] = {name: run["cpu_seconds"] for name, run in runs.items()}
    print(json.dumps(numbers, indent=2))
    print(describe_machine())
    print(save(item, numbers).name)


if __name__ == "__main__":
    main()
