"""The trained model in the package, trained on at small learning rates: small states against float32 masters.

    python -m benchmarks.small_state [--steps N] [--seeds N] [--arms NAME ...] [--workers N] [--runs FILE]

From 3e-5 to 3e-6, a cosine, as continued pre-training does. Every arm holds bfloat16 weights and computes with them in
float32, so that arms differ in nothing but how updates are kept. Losses are of documents that come after those trained
on. Reported are the loss beside the masters', the share of their improvement that is lost, the share of weights that
never changed, and bytes per parameter of weights and moments (gradients, which a trainer may release, do not count).
Finished runs stay in a file: the same command goes on with what is missing.
"""

import argparse
import json
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kept_runs import run_all
from benchmarks.results import HERE, describe_machine, save
from ling.checkpoint import load_model
from ling.cli.demo.prepare import Prepared, prepare
from ling.config.recipe import Recipe, load_recipe
from ling.config.training import OptimConfig
from ling.engine.bundled import bundled_directory
from ling.model import CausalLM
from ling.optim.build import build_optimizer
from ling.train.loss import LossCounts, compute_loss
from ling.train.step import train_step

ARMS: dict[str, dict[str, Any]] = {
    "float32 masters": {"master_weights": True},
    "stochastic, FP8 moments": {"moments": "fp8"},
    "stochastic, published 8-bit moments": {"moments": "dynamic8"},
    "stochastic, float32 moments": {},
    "to nearest, float32 moments": {"weight_rounding": "nearest"},
    "to nearest, FP8 moments": {"weight_rounding": "nearest", "moments": "fp8"},
}
BASE = "float32 masters"
BOUND_PERCENT = 0.25
HELD_OUT_STEPS = 24
CONTINUED = [
    "optim.lr=3e-5", "optim.end_lr=3e-6", "optim.schedule=cosine", "optim.warmup_steps=0", "optim.beta2=0.95",
    "optim.expert_bias_update_rate=1e-4", "train.average_last=0", "train.tokens_per_step=2048",
    "data.dialogue_fraction=0.7",
]  # fmt: skip
"""Laid over the recipe of the model in the package."""


class Through(torch.optim.Optimizer):
    """Updates a bfloat16 model by the gradients of a float32 one, which then takes its weights."""

    def __init__(self, computing: CausalLM, kept: CausalLM, optim: OptimConfig) -> None:
        self.inner = build_optimizer(kept, optim)
        super().__init__([{"params": list(computing.parameters())}], {})
        self.param_groups = self.inner.param_groups  # where the learning rate is set
        self.pairs = list(zip(computing.parameters(), kept.parameters(), strict=True))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for computing, kept in self.pairs:
            kept.grad = None if computing.grad is None else computing.grad.to(kept.dtype)
        self.inner.step()
        for computing, kept in self.pairs:
            computing.copy_(kept)
            kept.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for computing, _ in self.pairs:
            computing.grad = None


def recipe_of(seed: int, steps: int) -> Recipe:
    run = [f"train.steps={steps}", f"train.seed={1000 + seed}"]
    return load_recipe(preset_name="demo", overrides=[*CONTINUED, *run])


@cache
def prepared_for(seed: int, steps: int) -> Prepared:
    return prepare(recipe_of(seed, steps), bundled_directory())


def run(arm: str, seed: int, steps: int) -> dict[str, float]:
    """Train the model in the package on by an arm's rules, over documents that a seed draws."""
    recipe, prepared = recipe_of(seed, steps), prepared_for(seed, steps)
    computing, kept = (load_model(bundled_directory(), dtype=torch.float32) for _ in range(2))
    kept.bfloat16()
    with torch.no_grad():
        for c, k in zip(computing.parameters(), kept.parameters(), strict=True):
            c.copy_(k)
    first = {name: p.detach().clone() for name, p in kept.named_parameters() if p.dtype == torch.bfloat16}
    optim = OptimConfig(
        **{name: getattr(recipe.optim, name) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")},
        weights="bfloat16", rounding_seed=recipe.train.seed, **ARMS[arm],
    )  # fmt: skip
    optimizer = Through(computing, kept, optim)
    before, began = measure(computing, prepared, steps), time.process_time()
    for step in range(steps):
        train_step(computing, optimizer, prepared.read_batches(step), recipe, step)
    seconds = time.process_time() - began
    still = sum(int((p == first[n]).sum()) for n, p in kept.named_parameters() if n in first)
    return {
        "before": before,
        "after": measure(computing, prepared, steps),
        "unchanged_percent": 100 * still / sum(p.numel() for p in first.values()),
        "bytes_per_parameter": bytes_per_parameter(kept, optimizer.inner),
        "cpu_seconds": round(seconds, 1),
    }


def bytes_per_parameter(model: CausalLM, optimizer: torch.optim.Optimizer) -> float:
    held: list[Tensor] = [*model.parameters(), *model.buffers()]
    held += [value for state in optimizer.state.values() for value in state.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(storages.values()) / sum(p.numel() for p in model.parameters())


@torch.no_grad()
def measure(model: CausalLM, prepared: Prepared, first_step: int) -> float:
    """Return the mean loss of the documents of steps that are not trained on."""
    losses = []
    for step in range(first_step, first_step + HELD_OUT_STEPS):
        for batch in prepared.read_batches(step):
            output = model(batch.tokens, batch.positions, batch.attention)
            found = compute_loss(model, output, batch.labels, batch.mtp_labels, counts=LossCounts.of([batch]))
            losses.append(float(found.main))
    return statistics.fmean(losses)


def compare(runs: dict[str, dict[str, Any]], arms: list[str], seeds: int) -> dict[str, Any]:
    """Return each arm's means over the seeds, and what it lost against the masters."""
    found: dict[str, Any] = {}
    for arm in arms:
        pairs = [(runs[f"{arm}, seed {s}"], runs[f"{BASE}, seed {s}"]) for s in range(seeds)]
        gaps = [100 * (r["after"] / b["after"] - 1) for r, b in pairs]
        lost = [100 * (r["after"] - b["after"]) / (b["before"] - b["after"]) for r, b in pairs]
        found[arm] = {
            "gap_percent": statistics.fmean(gaps),
            "by_seed_percent": gaps,
            "held": statistics.fmean(gaps) <= BOUND_PERCENT,
            "improvement_lost_percent": statistics.fmean(lost),
            "improvement_lost_by_seed_percent": lost,
            "unchanged_percent": statistics.fmean(r["unchanged_percent"] for r, _ in pairs),
            "bytes_per_parameter": pairs[0][0]["bytes_per_parameter"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=[a for a in ARMS if a != BASE], choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--runs", type=Path, default=HERE / "small-state-runs.json", help="keeps finished runs")
    asked = parser.parse_args()
    arms = list(dict.fromkeys([BASE, *asked.arms]))
    tasks = {f"{arm}, seed {s}": (arm, s, asked.steps) for s in range(asked.seeds) for arm in arms}
    settings = {"steps": asked.steps, "recipe": CONTINUED}
    runs = run_all(tasks, run, asked.runs, settings, asked.workers)
    numbers = {"tokens": asked.steps * 2048, **settings, "runs": runs, "arms": compare(runs, arms, asked.seeds)}
    print(json.dumps(numbers["arms"], indent=2))
    print(describe_machine())
    print(save("small-state", numbers).name)


if __name__ == "__main__":
    main()
