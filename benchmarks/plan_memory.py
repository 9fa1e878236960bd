"""Peak bytes of real training steps on a CPU beside what `ling plan` predicts and what a simulation counts.

    python -m benchmarks.plan_memory

Three configurations in float32, each trained for three steps in a process of its own, with the ordinary training step.
Measured is the largest sum of live allocations that torch's CPU allocator reports to its profiler: every tensor, and
every workspace that a kernel takes from the allocator, to the byte. The resident set of the process would not do: it
counts the interpreter and pages that are free but not returned, tens of MiB that come and go. Buffers inside MKL and
oneDNN are in neither.
"""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.results import save
from ling.config import ModelConfig, preset
from ling.config.recipe import Recipe
from ling.model import CausalLM, init_weights
from ling.model.batch import PackedBatch
from ling.ops.ragged import Ragged
from ling.optim.build import build_optimizer
from ling.scaling.activations import Workload
from ling.scaling.layout import Layout
from ling.scaling.memory import plan_memory
from ling.scaling.precision import PRECISIONS
from ling.train.batch import TrainBatch
from ling.train.plan.simulate import simulate
from ling.train.step import train_step

STEPS = 3
TARGET_PERCENT = 10
_DEMO = ModelConfig(**preset("demo")["model"])

# Name: the network, tokens per sequence, sequences.
CASES: dict[str, tuple[ModelConfig, int, int]] = {
    "demo, MTP": (_DEMO, 512, 8),
    "51M, no MTP": (
        ModelConfig(
            vocab_size=8192, hidden_size=256, num_hidden_layers=8, intermediate_size=512, num_attention_heads=4,
            num_key_value_heads=2, head_dim=64, rotary_dim=32, num_experts=64, num_experts_per_tok=4,
            moe_intermediate_size=128, n_group=8, topk_group=4, max_position_embeddings=512, pad_token_id=None,
            eos_token_id=None, torch_dtype="float32",
        ),
        512,
        8,
    ),
    "many weights, few tokens": (
        dataclasses.replace(_DEMO, num_experts=256, moe_intermediate_size=96, vocab_size=16384),
        256,
        1,
    ),
}  # fmt: skip


def main() -> None:
    if len(sys.argv) == 2:
        print(json.dumps(measure(*CASES[sys.argv[1]])))
        return
    numbers: dict[str, Any] = {}
    for name, (model, length, sequences) in CASES.items():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.plan_memory", name], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        work = Workload(length, sequences)
        planned = plan_memory(model, Layout(), work, PRECISIONS["float32"])
        simulated = simulate(model, Layout(), work, PRECISIONS["float32"])
        off = 100 * (planned.peak.total / found["peak_bytes"] - 1)
        numbers[name] = found | {
            "predicted_bytes": planned.peak.total,
            "predicted_moment": planned.moment,
            "simulated_bytes": simulated.total,
            "predicted_off_percent": off,
        }
        print(
            f"{name}: measured {found['peak_bytes'] / 2**20:.1f} MiB, predicted {planned.peak.total / 2**20:.1f} "
            f"({off:+.1f} %; target within {TARGET_PERCENT}), simulated {simulated.total / 2**20:.1f}"
        )
    print(f"kept in {save('plan-memory', numbers)}")


def measure(model: ModelConfig, length: int, sequences: int) -> dict[str, int]:
    """Train a few steps; return the peak and what stays between steps, in bytes of live allocations."""
    torch.set_num_threads(1)
    recipe = Recipe(model=model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        network = init_weights(CausalLM(model), torch.Generator().manual_seed(0))
        optimizer = build_optimizer(network, recipe.optim)
        for step in range(STEPS):
            train_step(network, optimizer, [random_batch(model, length, sequences)], recipe, step)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return {"peak_bytes": peak, "resting_bytes": live}


def random_batch(model: ModelConfig, length: int, sequences: int) -> TrainBatch:
    """Return whole sequences of random tokens, every one of them learnt."""
    rows, depth = Ragged([length] * sequences), model.num_nextn_predict_layers
    tokens = torch.randint(model.vocab_size, (rows.total,), generator=torch.Generator().manual_seed(0))
    ahead = [tokens.roll(-1 - i) for i in range(depth + 1)]
    later = torch.stack(ahead[1:]) if depth else tokens.new_empty(0, rows.total)
    mtp_ids = torch.stack(ahead[:depth]) if depth else None
    return TrainBatch(tokens, rows.index_in_sequence, ahead[0], later, PackedBatch(rows, mtp_ids))


if __name__ == "__main__":
    main()
