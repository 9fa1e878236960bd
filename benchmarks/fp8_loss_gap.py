"""The loss of FP8 products against BF16's: same data, same tokens, several seeds, and the noise that any change makes.

    python -m benchmarks.fp8_loss_gap [--tokens N] [--seeds N] [--arms NAME ...] [--out FILE]

Both arms train a small Ling in float32 but for the operands of the blocks' products, which are rounded to bfloat16, or
quantised to FP8; sums are float32 in both. So nothing but the operands differs. Compared is the mean loss of the
last fifth of the run, batch by batch the same, and that of held-out documents. The noise floor is the spread of
bfloat16 runs whose first weights differ in a last bit: routing lets such a difference grow to what chance alone does.

The bound: |gap| <= max(0.25 %, 2 sigma), sigma of the difference of two such runs.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import describe_machine, save
from ling.cli.demo.prepare import Prepared, prepare
from ling.config.fp8 import Fp8Config
from ling.config.recipe import Recipe, load_recipe
from ling.model import CausalLM, init_weights
from ling.model.fp8 import Fp8Layers
from ling.model.linear import Linear
from ling.model.moe import SparseMoe
from ling.ops.linear import Weight, grouped_linear
from ling.ops.row_order import order_rows
from ling.train.batch import build_batch
from ling.train.loss import LossCounts, compute_loss
from ling.train.state import TrainState
from ling.train.step import train_step

ARMS: dict[str, Fp8Config | None] = {
    "bfloat16": None,
    "fp8": Fp8Config(),
    "fp8, float32 scales": Fp8Config(scales="float32"),
    "fp8, e5m2 gradients": Fp8Config(gradients="e5m2"),
    "fp8, weight gradients too": Fp8Config(weight_gradients="fp8"),
}
BOUND_PERCENT = 0.25
LAST = 0.2


class _RoundForward(torch.autograd.Function):
    """Rounds to bfloat16; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).float()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy


class _RoundBackward(torch.autograd.Function):
    """Passes; the gradient is rounded to bfloat16, before both products that it is an operand of."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy.to(torch.bfloat16).float()


def rounded_linear(x: Tensor, weight: Tensor) -> Tensor:
    return _RoundBackward.apply(torch.nn.functional.linear(_RoundForward.apply(x), _RoundForward.apply(weight)))


def rounded_mix(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """As `ops.fp8_experts`, the mixing weight before the down projection, with operands in bfloat16."""
    order, k = order_rows(ids, counts), ids.shape[1]
    rows = _RoundForward.apply(x)[order.pair_of_row // k]
    hidden = _RoundBackward.apply(grouped_linear(rows, _RoundForward.apply(gate_up), order.offsets))
    gate, up = hidden.chunk(2, dim=1)
    product = torch.nn.functional.silu(gate) * up * mix.flatten()[order.pair_of_row][:, None]
    out = grouped_linear(_RoundForward.apply(product), _RoundForward.apply(down), order.offsets)
    return _RoundBackward.apply(out)[order.row_of_pair].view(len(x), k, -1).sum(1)


def round_operands(model: CausalLM) -> None:
    """Let the products that FP8 would take have bfloat16 operands."""
    for block in model.model.layers:
        for part in (block.attention, block.mlp):
            for module in part.modules():
                if isinstance(module, Linear):
                    module.multiply = rounded_linear
                elif isinstance(module, SparseMoe):
                    module.mix = rounded_mix


@dataclass
class Outcome:
    last: float
    heldout: float
    seconds: float
    losses: list[float]
    measured: dict[str, Any] | None


def recipe_of(seed: int, steps: int) -> Recipe:
    """A Ling of hidden size 256 over the data in the package."""
    wide = [
        "model.hidden_size=256", "model.intermediate_size=768", "model.num_attention_heads=4", "model.head_dim=64",
        "model.rotary_dim=32", "model.num_experts=16", "model.num_experts_per_tok=2", "model.n_group=4",
        "model.topk_group=2", "model.moe_intermediate_size=128", "model.moe_shared_expert_intermediate_size=128",
        "model.num_hidden_layers=3", "model.first_k_dense_replace=1", "model.num_nextn_predict_layers=0",
        "model.initializer_range=0.03", "optim.lr=1.5e-3", f"optim.warmup_steps={max(1, steps // 20)}",
    ]  # fmt: skip
    run = ["train.tokens_per_step=2048", f"train.steps={steps}", "train.average_last=0", f"train.seed={seed}"]
    return load_recipe(preset_name="demo", overrides=[*wide, *run])


def train(recipe: Recipe, prepared: Prepared, arm: str, *, perturbed: int = 0) -> Outcome:
    """Train from the recipe's seed; `perturbed` numbers a weight that begins one bit away."""
    model = init_weights(CausalLM(recipe.model), torch.Generator().manual_seed(recipe.train.seed))
    if perturbed:
        with torch.no_grad():
            weight = model.model.norm.weight  # in float32 to the end: a block's would be rounded to what it was
            weight[perturbed] = torch.nextafter(weight[perturbed], torch.tensor(torch.inf))
    config, layers = ARMS[arm], None
    if config is None:
        round_operands(model)
    else:
        layers = Fp8Layers(model, config)
    state = TrainState(model, recipe.optim)
    began, losses, measured = time.perf_counter(), [], None
    for step in range(recipe.train.steps):
        if layers is not None:
            layers.begin(step)
        result = train_step(model, state.optimizer, prepared.read_batches(step), recipe, step, guard=state.guard)
        measured = (layers.judge(step) if layers is not None else None) or measured
        losses.append(float(result.losses.main))
    tail = losses[-max(1, round(LAST * len(losses))) :]
    seconds = time.perf_counter() - began
    found = None if measured is None else measured._asdict()
    return Outcome(statistics.fmean(tail), heldout(model, prepared), seconds, losses, found)


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--perturbed", type=int, default=3, help="reruns of seed 0 for the noise floor")
    parser.add_argument("--arms", nargs="+", default=["fp8"], choices=[a for a in ARMS if a != "bfloat16"])
    parser.add_argument("--out", type=Path, default=None, help="keeps finished runs, so that a stopped one goes on")
    asked = parser.parse_args()
    steps = asked.tokens // 2048
    kept: dict[str, Any] = {}
    if asked.out is not None and asked.out.exists():
        kept = json.loads(asked.out.read_text())
    prepared = cache(lambda seed: prepare(recipe_of(seed, steps), None))

    def run(seed: int, arm: str, perturbed: int = 0) -> dict[str, Any]:
        name = f"{arm}, seed {seed}" + (f", perturbed {perturbed}" if perturbed else "")
        if name not in kept:
            kept[name] = vars(train(recipe_of(seed, steps), prepared(seed), arm, perturbed=perturbed))
            print(f"{name}: last {kept[name]['last']:.5f}, held out {kept[name]['heldout']:.5f}", flush=True)
            if asked.out is not None:
                asked.out.write_text(json.dumps(kept))
        return kept[name]

    numbers: dict[str, Any] = {"tokens": steps * 2048, "hidden_size": 256, "steps": steps}
    base = [run(seed, "bfloat16") for seed in range(asked.seeds)]
    reruns = [base[0], *(run(0, "bfloat16", i + 1) for i in range(asked.perturbed))]
    for key in ("last", "heldout"):
        values = [r[key] for r in reruns]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        sigma = 100 * 2**0.5 * spread / statistics.fmean(values)
        numbers[key] = {"sigma_percent": sigma, "bfloat16": [b[key] for b in base]}
        for arm in asked.arms:
            found = [run(seed, arm)[key] for seed in range(asked.seeds)]
            gaps = [100 * (f / b[key] - 1) for f, b in zip(found, base, strict=True)]
            bound = max(BOUND_PERCENT, 2 * sigma / len(gaps) ** 0.5)
            mean = statistics.fmean(gaps)
            numbers[key][arm] = {"gap_percent": mean, "by_seed": gaps, "bound_percent": bound, "held": mean <= bound}
    numbers["fp8_lost"] = {name: r["measured"] for name, r in kept.items() if r["measured"]}
    numbers["seconds"] = {name: round(r["seconds"], 1) for name, r in kept.items()}
    print(json.dumps(numbers, indent=2))
    print(describe_machine())
    print(save("fp8-loss-gap", numbers).name)


if __name__ == "__main__":
    main()
