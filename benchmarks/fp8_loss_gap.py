"""The loss of FP8 products against BF16's: same data, same tokens, several seeds, and the noise that any change makes.

    python -m benchmarks.fp8_loss_gap [--tokens N] [--seeds N] [--perturbed N] [--arms NAME ...] [--workers N]
                                      [--runs FILE] [--snapshots DIR]

Both arms train a small Ling in float32 but for the operands of the blocks' products, which are rounded to bfloat16, or
quantised to FP8; sums are float32 in both. So nothing but the operands differs. Compared is the mean loss of the
last fifth of the run, batch by batch the same, and that of held-out documents. The noise floor is the spread of
bfloat16 runs whose first weights differ in a last bit: routing lets such a difference grow to what chance alone does.

The bound on the mean gap of n seeds: 0.25 %, or 2 sigma / sqrt(n) if that is more; sigma is that of the difference
between two such runs. Finished runs stay in a file: the same command goes on with what is missing, and in the middle of
a run if there are snapshots of it, of three float32 copies of the model each.
"""

import argparse
import json
import statistics
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.kept_runs import run_all
from benchmarks.results import HERE, describe_machine, save
from benchmarks.rounded_operands import round_operands
from benchmarks.snapshots import read_snapshot, write_snapshot
from ling.cli.demo.prepare import Prepared, prepare
from ling.config.fp8 import Fp8Config
from ling.config.recipe import Recipe, load_recipe
from ling.model import CausalLM, init_weights
from ling.model.fp8 import Fp8Layers
from ling.train.batch import build_batch
from ling.train.loss import LossCounts, compute_loss
from ling.train.state import TrainState
from ling.train.step import train_step

BASE = "bfloat16"
ARMS: dict[str, Fp8Config | None] = {
    BASE: None,
    "fp8": Fp8Config(),
    "fp8, float32 scales": Fp8Config(scales="float32"),
    "fp8, e5m2 gradients": Fp8Config(gradients="e5m2"),
    "fp8, weight gradients too": Fp8Config(weight_gradients="fp8"),
}
BOUND_PERCENT = 0.25
LAST = 0.2
"""Share of the steps whose losses are compared."""
SNAPSHOT_EVERY = 100
POINTS = 50
"""Of a kept loss curve."""
TOKENS_PER_STEP = 2048
WIDE = [
    "model.hidden_size=256", "model.intermediate_size=512", "model.num_attention_heads=4", "model.head_dim=64",
    "model.rotary_dim=32", "model.num_experts=16", "model.num_experts_per_tok=2", "model.n_group=4",
    "model.topk_group=2", "model.moe_intermediate_size=128", "model.moe_shared_expert_intermediate_size=128",
    "model.num_hidden_layers=3", "model.first_k_dense_replace=1", "model.num_nextn_predict_layers=0",
    "model.initializer_range=0.03", "optim.lr=1.5e-3", "optim.schedule=cosine", "optim.end_lr=1.5e-4",
    f"train.tokens_per_step={TOKENS_PER_STEP}", "train.average_last=0",
    "data.dialogue_fraction=0",
]  # fmt: skip
"""Laid over the demo's recipe: hidden size 256, and only the books in the package, every token of which is learnt."""


def recipe_of(seed: int, steps: int) -> Recipe:
    run = [f"optim.warmup_steps={max(1, steps // 20)}", f"train.steps={steps}", f"train.seed={seed}"]
    return load_recipe(preset_name="demo", overrides=[*WIDE, *run])


@cache
def prepared_for(seed: int, steps: int) -> Prepared:
    return prepare(recipe_of(seed, steps), None)


def train(arm: str, seed: int, steps: int, perturbed: int = 0, snapshots: Path | None = None) -> dict[str, Any]:
    """Train from a seed; `perturbed` numbers a weight that begins one bit away.

    snapshots  directory, where a run that was killed is gone on with
    """
    recipe, prepared = recipe_of(seed, steps), prepared_for(seed, steps)
    model = init_weights(CausalLM(recipe.model), torch.Generator().manual_seed(seed))
    if perturbed:
        with torch.no_grad():
            weight = model.model.norm.weight  # in float32 to the end: a block's would be rounded to what it was
            weight[perturbed] = torch.nextafter(weight[perturbed], torch.tensor(torch.inf))
    config, layers = ARMS[arm], None
    if config is None:
        round_operands(model)
    else:
        layers = Fp8Layers(model, config)
    state, settings = TrainState(model, recipe.optim), {"recipe": WIDE, "steps": steps}
    file = None if snapshots is None else snapshots / f"{arm}, seed {seed}, perturbed {perturbed}.pt"
    facts = read_snapshot(file, state, settings) or {"losses": [], "tokens": 0, "seconds": 0.0, "lost": None, "fp8": []}
    if layers is not None:
        layers.restore(facts["fp8"], str(file))
    for step in range(len(facts["losses"]), steps):
        began = time.process_time()  # not of the clock on the wall: a run may be held up
        if layers is not None:
            layers.begin(step)
        result = train_step(model, state.optimizer, prepared.read_batches(step), recipe, step, guard=state.guard)
        if layers is not None:
            measured = layers.judge(step)
            facts["lost"] = facts["lost"] if measured is None else measured._asdict()
            facts["fp8"] = layers.state()
        facts["losses"].append(float(result.losses.main))
        facts["tokens"] += result.tokens
        facts["seconds"] += time.process_time() - began
        if file is not None and (step + 1) % SNAPSHOT_EVERY == 0:
            write_snapshot(file, state, facts, settings)
    losses = facts["losses"]
    found = {
        "last": statistics.fmean(losses[-max(1, round(LAST * steps)) :]),
        "heldout": heldout(model, prepared),
        "tokens": facts["tokens"],
        "cpu_seconds": round(facts["seconds"], 1),
        "curve": curve(losses),
        "fp8_lost": facts["lost"],
    }
    if file is not None:
        file.unlink(missing_ok=True)
    return found


def curve(losses: list[float], points: int = POINTS) -> list[float]:
    """Return means of equal parts of a run, at most `points`."""
    ends = [round(i * len(losses) / points) for i in range(points + 1)]
    return [round(statistics.fmean(losses[a:b]), 5) for a, b in pairwise(ends) if a < b]


@torch.no_grad()
def heldout(model: CausalLM, prepared: Prepared, tokens: int = 16384) -> float:
    """Return the mean loss of held-out text, in the arm's own products."""
    total, count = 0.0, 0
    for text in prepared.heldout_books:
        ids = prepared.tokenizer.encode(text, special=False)[:192]
        if len(ids) < 2:
            continue
        batch = build_batch([ids], [[True] * len(ids)], 0)
        output = model(batch.tokens, batch.positions, batch.attention)
        losses = compute_loss(model, output, batch.labels, batch.mtp_labels, counts=LossCounts.of([batch]))
        total, count = total + float(losses.main) * (len(ids) - 1), count + len(ids) - 1
        if count >= tokens:
            break
    return total / count


def tasks_of(
    arms: list[str], seeds: int, perturbed: int, steps: int, snapshots: Path | None = None
) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of `train` by name: pairs first, so that a part of the runs says something."""
    pairs = {f"{arm}, seed {s}": (arm, s, steps, 0, snapshots) for s in range(seeds) for arm in (BASE, *arms)}
    return pairs | {f"{BASE}, seed 0, perturbed {i}": (BASE, 0, steps, i, snapshots) for i in range(1, perturbed + 1)}


def compare(runs: dict[str, dict[str, Any]], arms: list[str], seeds: int, key: str) -> dict[str, Any]:
    """Return the gap of each arm and the bound on it, of the loss under `key`."""
    base = [runs[f"{BASE}, seed {s}"][key] for s in range(seeds)]
    reruns = [base[0], *(run[key] for name, run in runs.items() if "perturbed" in name)]
    spread = statistics.stdev(reruns) if len(reruns) > 1 else 0.0
    sigma = 100 * 2**0.5 * spread / statistics.fmean(reruns)
    found: dict[str, Any] = {"sigma_percent": sigma, BASE: base, "perturbed": reruns[1:]}
    for arm in arms:
        losses = [runs[f"{arm}, seed {s}"][key] for s in range(seeds)]
        gaps = [100 * (loss / b - 1) for loss, b in zip(losses, base, strict=True)]
        bound, mean = max(BOUND_PERCENT, 2 * sigma / seeds**0.5), statistics.fmean(gaps)
        found[arm] = {
            "losses": losses, "by_seed_percent": gaps, "gap_percent": mean, "bound_percent": bound,
            "held": mean <= bound,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--perturbed", type=int, default=3, help="reruns of seed 0 for the noise floor")
    parser.add_argument("--arms", nargs="+", default=["fp8"], choices=[a for a in ARMS if a != BASE])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--runs", type=Path, default=HERE / "fp8-loss-gap-runs.json", help="keeps finished runs")
    parser.add_argument("--snapshots", type=Path, default=None, help="directory for runs that are under way")
    asked = parser.parse_args()
    steps = -(-asked.tokens // TOKENS_PER_STEP)
    tasks = tasks_of(asked.arms, asked.seeds, asked.perturbed, steps, asked.snapshots)
    settings = {"steps": steps, "recipe": WIDE}
    runs = run_all(tasks, train, asked.runs, settings, asked.workers)
    numbers: dict[str, Any] = {"tokens": min(run["tokens"] for run in runs.values()), **settings}
    numbers |= {key: compare(runs, asked.arms, asked.seeds, key) for key in ("last", "heldout")}
    numbers["fp8_lost"] = {name: run["fp8_lost"] for name, run in runs.items() if run["fp8_lost"]}
    numbers["cpu_seconds"] = {name: run["cpu_seconds"] for name, run in runs.items()}
    print(json.dumps(numbers, indent=2))
    print(describe_machine())
    print(save("fp8-loss-gap", numbers).name)


if __name__ == "__main__":
    main()
