"""What `benchmarks.gpu` measures: the card's own ceilings, then Ling-mini through plain torch ops.

These are the baseline that faster kernels are compared with. Weights are random: speed does not depend on them, and
no run of zeros flatters the card.
"""

import dataclasses
import gc
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ling.config import ModelConfig, preset
from ling.config.training import OptimConfig
from ling.engine.cache import PagedCache, Part
from ling.engine.runner import Runner
from ling.model import CausalLM, init_weights
from ling.model.batch import PackedBatch, shift_within
from ling.ops.ragged import Ragged
from ling.optim.build import build_optimizer
from ling.scaling.flops import count_flops
from ling.scaling.parameters import count_parameters
from ling.train.loss import compute_loss

DEVICE = "cuda"
LARGE_COPY = 2**30
LARGE_PRODUCT = 8192
MINI = ModelConfig(**preset("ling_mini")["model"])


def timed(function: Callable[[], Any], repeats: int) -> list[float]:
    """Return the seconds of each repeat, shortest first, after two that are not counted."""
    seconds = []
    for _ in range(repeats + 2):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[2:])


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@cache
def ceilings() -> dict[str, Any]:
    """Measure what the card can do: bytes per second of a large copy, FLOP per second of a large product."""
    source = torch.randn(LARGE_COPY, device=DEVICE)
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), 10)[0]
    a, b = (torch.randn(LARGE_PRODUCT, LARGE_PRODUCT, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = timed(lambda: a @ b, 10)[0]
    return {
        "copy_gb_per_second": round(2 * source.nbytes / copy / 1e9, 4),
        "bf16_matmul_tflops": round(2 * LARGE_PRODUCT**3 / product / 1e12, 4),
    }


def random_model(config: ModelConfig) -> CausalLM:
    """Return a BF16 model with random weights, made on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    with torch.device("meta"):
        model = CausalLM(config).to(torch.bfloat16)
    return init_weights(model.to_empty(device=DEVICE), torch.Generator(DEVICE).manual_seed(0))


@cache
def mini() -> CausalLM:
    return random_model(MINI).requires_grad_(False)


def decode() -> dict[str, Any]:
    """Decode one sequence greedily behind a prompt of 128 tokens."""
    model, steps = mini(), 48
    block_size = 64
    blocks = list(range(512 // block_size))
    runner = Runner(model, PagedCache(MINI, len(blocks), block_size, torch.bfloat16, torch.device(DEVICE)), 512)
    new, done = torch.randint(MINI.vocab_size, (128,)).tolist(), 0
    seconds = []
    for _ in range(steps):
        synchronize()
        start = time.perf_counter()
        (hidden,), _ = runner.forward([Part(blocks, done, len(new))], [new])
        done += len(new)
        new = [int(runner.logits(hidden[-1:]).argmax())]
        seconds.append(time.perf_counter() - start)
    step = sorted(seconds[4:])[len(seconds[4:]) // 2]
    # Every activated weight is read once per token; of the embedding only one row is.
    counts = count_parameters(MINI)
    read = 2 * (counts.activated - MINI.vocab_size * MINI.hidden_size)
    rate = read / step / 1e9
    return {
        "tokens_per_second": round(1 / step, 1),
        "step_ms_median": round(step * 1e3, 3),
        "step_ms_best": round(min(seconds[4:]) * 1e3, 3),
        "gb_read_per_token": round(read / 1e9, 3),
        "gb_per_second": round(rate, 1),
        "percent_of_copy": round(100 * rate / ceilings()["copy_gb_per_second"], 1),
        "max_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


@torch.inference_mode()
def prefill() -> dict[str, Any]:
    """Run one prompt of 2,048 tokens and the head on its last row."""
    model, S = mini(), 2048
    tokens = torch.randint(MINI.vocab_size, (S,), device=DEVICE)
    rows = Ragged([S], DEVICE)

    def run() -> Tensor:
        return model.logits(model(tokens, rows.index_in_sequence, PackedBatch(rows)).hidden[-1:])

    step = timed(run, 5)[2]
    flops = count_flops(MINI, S)
    done = S * (flops.forward - flops.head) + flops.head
    return {
        "tokens_per_second": round(S / step),
        "ms": round(step * 1e3, 2),
        "tflops": round(done / step / 1e12, 1),
        "percent_of_matmul": round(100 * done / step / 1e12 / ceilings()["bf16_matmul_tflops"], 1),
    }


def train_step() -> dict[str, Any]:
    """Train four layers of Ling-mini, one of them dense, and an MTP layer, on two sequences of 4,096 tokens."""
    mini.cache_clear()
    config = dataclasses.replace(MINI, num_hidden_layers=4, num_nextn_predict_layers=1)
    model = random_model(config).requires_grad_(True)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-5))
    B, S = 2, 4096
    tokens = torch.randint(config.vocab_size, (B * S,), device=DEVICE)
    rows = Ragged([S] * B, DEVICE)
    batch = PackedBatch(rows, shift_within(tokens, rows, 1, fill=0))
    labels = shift_within(tokens, rows, 2, fill=-100)

    def step() -> None:
        output = model(tokens, rows.index_in_sequence, batch)
        losses = compute_loss(model, output, labels[0], labels[1:], router_z_loss=3.5e-6)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, 5)[2]
    flops = count_flops(config, S).training * B * S
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_second": round(B * S / seconds),
        "ms": round(seconds * 1e3, 1),
        "tflops": round(flops / seconds / 1e12, 1),
        "percent_of_matmul": round(100 * flops / seconds / 1e12 / ceilings()["bf16_matmul_tflops"], 1),
        "max_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }
