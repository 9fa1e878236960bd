"""Products of FP8 operands at Ling-mini's sizes, by our kernels and by libraries that `train.fp8.backend` can name.

One that cannot run here is left out with its reason.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_items, gpu_kernels
from benchmarks import gpu_kernel_cases as cases
from benchmarks.gpu_kernel_cases import BF16, random
from ling.errors import BackendError
from ling.ops.backend import on_backend
from ling.ops.fp8_matmul import fp8_grouped_matmul, fp8_matmul
from ling.ops.fp8_tensor import Fp8Tensor

BACKENDS = ("triton", "scaled_mm", "deep_gemm")


def products() -> dict[str, Any]:
    """Time rows by one weight, and by those of experts with many and with few rows each."""
    found: dict[str, Any] = {"fp8_ceiling_tflops": round(gpu_kernels.fp8_ceiling(), 1)}
    H, heads = cases.H, (cases.A + 2 * cases.K) * cases.D
    for name, width, depth in (("query_key_value", heads, H), ("query_key_value_gradient", H, heads)):
        rows, weight = _operands(cases.N, (width, depth))
        for backend in BACKENDS:
            found[f"{name}_{backend}"] = _rate(_dense, backend, (rows, weight), 2 * cases.N * width * depth)
        torch.cuda.empty_cache()
    for per_expert in (gpu_kernels.ROWS_OF_EXPERT, gpu_kernels.FEW_ROWS):
        for name, width, depth in (("gate_up", 2 * cases.F, H), ("down", H, cases.F)):
            for backend in fp8_grouped_matmul.backends:  # type: ignore[attr-defined]
                if backend in BACKENDS:
                    numbers = _of_experts(backend, per_expert, width, depth)
                    found[f"{name}_{backend}_{per_expert}_rows"] = numbers
            torch.cuda.empty_cache()
    return found


def _of_experts(backend: str, per_expert: int, width: int, depth: int) -> dict[str, Any]:
    """Time rows of experts, with room up to multiples of 128 for who wants that, and the same useful work."""
    held = -(-per_expert // 128) * 128 if backend == "deep_gemm" else per_expert
    rows, weights = _operands(cases.E * held, (cases.E, width, depth))
    offsets = torch.arange(1, cases.E + 1, device=gpu_items.DEVICE, dtype=torch.int32) * held
    return _rate(_grouped, backend, (rows, weights, offsets), 2 * cases.E * per_expert * width * depth)


def _operands(N: int, weight: tuple[int, ...]) -> tuple[Fp8Tensor, Fp8Tensor]:
    return Fp8Tensor.of_tiles(random(N, weight[-1])), Fp8Tensor.of_blocks(random(*weight))


def _dense(backend: str, rows: Fp8Tensor, weight: Fp8Tensor) -> Tensor:
    return on_backend(backend, fp8_matmul)(rows, weight, BF16)


def _grouped(backend: str, rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor) -> Tensor:
    return on_backend(backend, fp8_grouped_matmul)(rows, weights, offsets, BF16)


def _rate(product: Callable[..., Tensor], backend: str, operands: tuple[Any, ...], flops: float) -> dict[str, Any]:
    try:
        product(backend, *operands)
    except BackendError as refusal:
        return {"left_out": str(refusal)}
    except Exception as failure:
        return {"error": f"{type(failure).__name__}: {failure}"[:500]}
    return gpu_kernels.rate(lambda: product(backend, *operands), flops, gpu_kernels.fp8_ceiling())
