"""The C kernels on shapes of Ling-mini: GB/s of weights, and the share of the bandwidth measured beside them.

    python -m benchmarks.run cpu_kernels

Weights are random, pass through more memory than any cache holds, and lie in huge pages as loaded ones do: with pages
of 4 KiB a head's product reaches two thirds of its rate. On a machine that is not quiet the fastest run says most; the
bandwidth is that of the fastest pass over 256 MiB, taken beside each kernel.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu_race.bursts import bandwidth
from benchmarks.results import describe_machine, save
from ling.checkpoint import load_model
from ling.checkpoint.packing import MIXED, Weights, matrices, pack
from ling.checkpoint.pages import anonymous_pages, to_empty_in_huge_pages, view
from ling.config import ModelConfig, preset
from ling.engine.bundled import bundled_directory
from ling.engine.cache import PagedCache, Part, lay_out
from ling.engine.runner import Runner
from ling.model import CausalLM
from ling.model.linear import Linear
from ling.ops.backend import use_backend
from ling.ops.cpu.library import library
from ling.ops.linear import linear
from ling.ops.moe import MoeWeights, moe_layer
from ling.ops.packed import PackedFormat, PackedWeight, codes_shape, scales_shape
from ling.ops.paged_attention import HeldBlocks, paged_attention
from ling.ops.ragged import Ragged
from ling.ops.router import RouterRule

H, F, E = 2048, 512, 256
RULE = RouterRule(8, 8, 4, 2.5)
MOVED_BYTES = 2**29
LAYERS = 3
CONTEXT = 64
LONGEST = 2**15


def main() -> None:
    kernels = library()
    if kernels is None:
        raise SystemExit("the CPU kernels are not built")
    numbers: dict[str, Any] = {"level": kernels.level, "threads": torch.get_num_threads()}
    with torch.inference_mode():
        for format in ("int8", "int4"):
            numbers |= products(format) | sparse_layers(format)
        formats: dict[str, Weights] = {"int8": "int8", "int4": "int4", "mixed": MIXED}
        for name, weights in formats.items():
            numbers |= decoding(name, weights)
        for held in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
            numbers |= attention(held)
        numbers |= embedded()
    print(json.dumps(numbers, indent=2))
    print(describe_machine())
    print(save("cpu-kernels", numbers).name)


def products(format: PackedFormat) -> dict[str, Any]:
    found = {}
    for rows in (3072, 1024, 157184):
        count = max(1, MOVED_BYTES // (rows * H))
        weights = [draw_packed(format, (), (rows,), H) for _ in range(count)]
        x = torch.randn(1, H)
        seconds = times(lambda i, x=x, w=weights: linear(x, w[i % len(w)]), 2 * count + 3)
        found[f"{format} product ({rows}, {H})"] = rate(seconds, weights[0].nbytes)
    x, w = torch.randn(512, H), draw_packed(format, (), (H,), H)
    found[f"{format} product ({H}, {H}), 512 rows"] = work(times(lambda _: linear(x, w), 10), 2 * 512 * H * H)
    return found


def sparse_layers(format: PackedFormat) -> dict[str, Any]:
    layers = [draw_moe(format) for _ in range(2)]
    each = (layers[0].gate_up_proj.nbytes + layers[0].down_proj.nbytes) // E  # type: ignore[union-attr]
    found = {}
    for N in (1, 2, 4, 8, 512):
        rows = torch.randn(64, N, H)
        experts = statistics.mean(int((moe_layer(x, layers[0], RULE)[1].counts > 0).sum()) for x in rows[:8])
        seconds = times(lambda i, rows=rows: moe_layer(rows[i % 64], layers[i % 2], RULE), 6 if N > 8 else 80)
        entry = rate(seconds, each * (experts + 1) + E * H * 2) if N <= 8 else work(seconds, 2 * 9 * N * 3 * H * F)
        found[f"{format} sparse layer, {N} tokens"] = entry | {"experts_read": experts + 1}
    return found


def decoding(name: str, weights: Weights) -> dict[str, Any]:
    """Decode with a few layers of Ling-mini; the head weighs as much as in the whole model."""
    tree = preset("ling_mini")["model"]
    config = dataclasses.replace(ModelConfig(**tree), num_hidden_layers=LAYERS, num_nextn_predict_layers=0)
    with torch.device("meta"):
        model = CausalLM(config)
    pack(model, weights)
    to_empty_in_huge_pages(model)
    for parameter in [*model.parameters(), *model.buffers()]:
        fill(parameter)
    runner = Runner(model.requires_grad_(False), PagedCache(config, 64, 16, torch.float32, torch.device("cpu")), 1024)
    seconds = times(lambda i: step(runner, i), 25)
    read = sum(
        m.quantity().nbytes if isinstance(m, Linear) else sum(q.nbytes for q in m.quantities()) * 8 // E
        for _, m in matrices(model)
    )
    key = f"{name} Ling-mini of {LAYERS} layers, decoding"
    return {key: rate(seconds, read) | {"tokens_per_second": round(1 / min(seconds), 1)}}


def attention(held: torch.dtype) -> dict[str, Any]:
    """Attend from one token, and from chunks of a prompt: the latter beside torch, whose kernel reads float32 alone."""
    tree = preset("ling_mini")["model"]
    config = dataclasses.replace(ModelConfig(**tree), num_hidden_layers=1, num_nextn_predict_layers=0)
    A, K, D, blocks = config.num_attention_heads, config.num_key_value_heads, config.head_dim, LONGEST // 16 + 1
    cache = PagedCache(config, blocks, 16, torch.float32, torch.device("cpu"), held=held)
    for x in (cache.keys, cache.values):
        for part in x.view(-1).split(len(_FLOATS)):
            part.copy_(_FLOATS[: len(part)])
    store, found = cache.store(0), {}
    each = 2 * K * (D * held.itemsize + (0 if store.key_scale is None else 4))
    for start, new in ((CONTEXT, 1), (8191, 1), (LONGEST - 1, 1), (0, 512), (0, 2048), (8192, 128), (8192, 512)):
        ((rows, seen),) = lay_out(cache, [Part(range(blocks), start, new)]).groups
        key, q = f"attention, {new} rows behind {start} in {str(held)[6:]}", torch.randn(new, A, D)

        def run(_: int, q: Tensor = q, rows: Ragged = rows, seen: HeldBlocks = seen) -> Tensor:
            return paged_attention(q, store, rows, seen)

        if new == 1:
            found[key] = rate(times(run, 30), each * (start + 1))
            continue
        found[key] = work(times(run, 3), 4 * A * D * new * (start + (new + 1) / 2))
        if held == torch.float32:
            with use_backend("torch"):
                found[key]["torch_ms"] = round(1e3 * min(times(run, 3)), 2)
    return found


def embedded() -> dict[str, Any]:
    """Decode with the model in the package, one thread: float32 without and with the C kernels, then packed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    exact = load_model(bundled_directory(), dtype=torch.float32).requires_grad_(False)
    for name, model in (
        ("float32 through torch", exact),
        ("float32", exact),
        ("int8", load_model(bundled_directory(), weights="int8")),
        ("int4", load_model(bundled_directory(), weights="int4")),
    ):
        config = model.config
        runner = Runner(model, PagedCache(config, 32, 16, torch.float32, torch.device("cpu")), 512)
        if name.endswith("torch"):
            with use_backend("torch"):
                seconds = times(lambda i, r=runner: step(r, i), 800)
        else:
            seconds = times(lambda i, r=runner: step(r, i), 800)
        found[f"embedded model, {name}"] = {
            "step_us": round(1e6 * min(seconds)),
            "median_step_us": round(1e6 * statistics.median(seconds)),
            "tokens_per_second": round(1 / min(seconds)),
        }
    torch.set_num_threads(before)
    return found


def step(runner: Runner, index: int) -> Tensor:
    """Run one token behind `CONTEXT` others, and its logits."""
    (hidden,), _ = runner.forward([Part(range(CONTEXT // 16 + 1), CONTEXT, 1)], [[5 + index % 50]])
    return runner.logits(hidden)


def draw_packed(format: PackedFormat, leading: tuple[int, ...], rows: tuple[int, ...], columns: int) -> PackedWeight:
    codes = in_huge_pages(torch.uint8, codes_shape(format, leading, rows, columns))
    scales = in_huge_pages(torch.float16, scales_shape(leading, rows, columns))
    return PackedWeight(format, fill(codes), fill(scales), rows, columns)


def in_huge_pages(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return view(anonymous_pages(math.prod(shape) * dtype.itemsize), 0, dtype, shape, 64)


def draw_moe(format: PackedFormat) -> MoeWeights:
    gate, up = (draw_packed(format, (), (F,), H) for _ in range(2))
    shared = (gate, up, draw_packed(format, (), (H,), F))
    routed = (draw_packed(format, (E,), (F, F), H), draw_packed(format, (E,), (H,), F))
    return MoeWeights((0.02 * torch.randn(E, H)).bfloat16(), torch.zeros(E), *routed, shared)


def fill(tensor: Tensor) -> Tensor:
    """Fill with what makes values of ordinary size: any codes, scales of 1e-4, small floats, norms of one."""
    if tensor.dtype == torch.float16:
        return tensor.fill_(1e-4)
    if tensor.dim() == 1:
        return tensor.fill_(1.0)
    flat = tensor.view(-1)
    for part in flat.split(len(_CODES)):  # drawing gigabytes would take longer than measuring
        part.copy_(_CODES[: len(part)] if tensor.dtype == torch.uint8 else _FLOATS[: len(part)])
    return tensor


def times(run: Callable[[int], Any], count: int) -> list[float]:
    run(0)
    seconds = []
    for i in range(count):
        begin = time.perf_counter()
        run(i)
        seconds.append(time.perf_counter() - begin)
    return seconds


def rate(seconds: list[float], num_bytes: float) -> dict[str, Any]:
    gb_per_s, beside = num_bytes / min(seconds) / 1e9, bandwidth()
    return {
        "us": round(1e6 * min(seconds), 1),
        "median_us": round(1e6 * statistics.median(seconds), 1),
        "gb_per_s": round(gb_per_s, 1),
        "bandwidth_gb_per_s": round(beside, 1),
        "bandwidth_percent": round(100 * gb_per_s / beside),
    }


def work(seconds: list[float], operations: float) -> dict[str, Any]:
    return {"ms": round(1e3 * min(seconds), 2), "gop_per_s": round(operations / min(seconds) / 1e9)}


_CODES = torch.randint(1, 255, (2**22,), dtype=torch.uint8)
_FLOATS = 0.02 * torch.randn(2**22)

if __name__ == "__main__":
    main()
