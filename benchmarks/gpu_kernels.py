"""Triton's kernels at Ling-mini's sizes: device time, rate, and per cent of what the card was measured to do.

Kernels bound by memory are held against a large copy, products in FP8 against one large product of FP8 matrices.
Times are of CUDA graphs, so that launching from Python is not in them. A kernel that fails does not stop the others.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from benchmarks import gpu_items
from benchmarks import gpu_kernel_cases as cases
from benchmarks.gpu_decode_cases import DECODING
from benchmarks.gpu_items import ceilings, timed
from benchmarks.gpu_kernel_cases import BF16, E4M3, random
from ling.ops.backend import use_backend
from ling.ops.fp8_experts import fp8_mix_experts
from ling.ops.fp8_linear import Fp8Rule
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.moe import mix_experts
from ling.ops.router import count_experts
from ling.ops.triton import fp8_matmul, quantize_block, quantize_tile
from ling.ops.triton.weight_grad import of_rows

CALLS = 10
ROWS_OF_EXPERT, FEW_ROWS = 1024, 64


def device_seconds(function: Callable[[], Any]) -> float:
    """Return the seconds of one call, the best of several graphs of `CALLS` each."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles, and fills caches, outside of the graph
        function()
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            function()
    return timed(graph.replay, 5)[0] / CALLS


@cache
def fp8_ceiling() -> float:
    """Return the TFLOP per second of one large FP8 product with a scale per tensor."""
    size = gpu_items.LARGE_PRODUCT
    a, b = (random(size, size).to(E4M3) for _ in range(2))
    one = torch.ones((), device=gpu_items.DEVICE)
    seconds = timed(lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=BF16, use_fast_accum=True), 10)[0]
    return 2 * size**3 / seconds / 1e12


def memory_bound_kernels() -> dict[str, Any]:
    """Time what is bound by memory; GB/s are of the bytes that must be moved."""
    found: dict[str, Any] = {}
    for make in (*cases.MEMORY_BOUND, *DECODING):
        try:
            function, moved = make()
            seconds = timed(function, 10)[0] if make in cases.NOT_IN_GRAPHS else device_seconds(function)
            rate = moved / seconds / 1e9
            found[make.__name__] = {
                "us": round(seconds * 1e6, 1),
                "gb_per_second": round(rate),
                "percent_of_copy": round(100 * rate / ceilings()["copy_gb_per_second"], 1),
            }
        except Exception as error:  # whatever a kernel dies of, the others are still worth knowing
            found[make.__name__] = {"error": f"{type(error).__name__}: {error}"[:500]}
        torch.cuda.empty_cache()
    return found


def products() -> dict[str, Any]:
    """Time products of experts in FP8, with many and with few rows per expert, and in bfloat16 beside them."""
    found: dict[str, Any] = {"fp8_ceiling_tflops": round(fp8_ceiling(), 1)}
    for per_expert in (ROWS_OF_EXPERT, FEW_ROWS):
        for name, width, depth in (("gate_up", 2 * cases.F, cases.H), ("down", cases.H, cases.F)):
            for kind, numbers in products_of_experts(per_expert, width, depth).items():
                found[f"{name}_{kind}_{per_expert}_rows"] = numbers
            torch.cuda.empty_cache()
    return found


def products_of_experts(per_expert: int, width: int, depth: int) -> dict[str, Any]:
    """Time products of rows (S, depth) with weights (E, width, depth) and the weights' gradients."""
    E, S = cases.E, cases.E * per_expert
    offsets = torch.arange(1, E + 1, device=gpu_items.DEVICE, dtype=torch.int32) * per_expert
    weights, x, dy = random(E, width, depth) / depth**0.5, random(S, depth), random(S, width)
    w8, x8 = Fp8Tensor(*quantize_block.forward(weights), "block"), Fp8Tensor(*quantize_tile.forward(x), "tile")
    flops, bf16 = 2 * S * width * depth, ceilings()["bf16_matmul_tflops"]
    return {
        "fp8": rate(lambda: fp8_matmul.multiply(x8, w8, offsets, BF16), flops, fp8_ceiling()),
        "bf16_torch": rate(lambda: grouped_mm(x, weights.transpose(1, 2), offs=offsets), flops, bf16),
        "weight_grad_of_codes": rate(lambda: of_rows(dy, x8, offsets, BF16), flops, bf16),
        "weight_grad_bf16_torch": rate(lambda: grouped_mm(dy.t(), x, offs=offsets), flops, bf16),
    }


def rate(function: Callable[[], Any], flops: float, ceiling: float) -> dict[str, Any]:
    """Return the time of one call, and its rate beside a ceiling in TFLOP per second; or what it died of."""
    try:
        seconds = device_seconds(function)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    reached = flops / seconds / 1e12
    return {
        "us": round(seconds * 1e6, 1),
        "tflops": round(reached, 1),
        "percent_of_matmul": round(100 * reached / ceiling, 1),
    }


def experts() -> dict[str, Any]:
    """Time one sparse layer's experts, forward and backward: by kernels in FP8 and BF16, and by torch's composition."""
    N, H, E, F, k = cases.N, cases.H, cases.E, cases.F, cases.k
    chosen = cases.ids()
    counts = count_experts(chosen, E)
    x, mix = random(N, H).requires_grad_(), torch.rand(N, k, device=gpu_items.DEVICE).requires_grad_()
    gate_up, down = (random(E, 2 * F, H) / H**0.5).requires_grad_(), (random(E, H, F) / F**0.5).requires_grad_()
    leaves, dy = [x, mix, gate_up, down], random(N, H)
    found: dict[str, Any] = {}
    for name, backend, layer in (
        ("fp8_triton", use_backend("triton"), lambda *a: fp8_mix_experts(*a, Fp8Rule())),
        ("bf16_triton", use_backend("triton"), mix_experts),
        ("bf16_torch", nullcontext(), mix_experts.__wrapped__),  # type: ignore[attr-defined]  # the composition
    ):
        try:
            with backend:
                found[name] = time_layer(lambda *a, layer=layer: layer(a[0], chosen, a[1], counts, *a[2:]), leaves, dy)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
    return found


def time_layer(layer: Callable[..., Tensor], leaves: list[Tensor], dy: Tensor) -> dict[str, Any]:
    """Time forward and backward, with what they hold beyond their inputs at most."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = timed(lambda: torch.autograd.grad(layer(*leaves), leaves, dy), 5)[2]
    return {
        "ms": round(seconds * 1e3, 2),
        "tflops": round(18 * cases.R * cases.F * cases.H / seconds / 1e12, 1),
        "transient_gib": round((torch.cuda.max_memory_allocated() - before) / 2**30, 2),
    }
