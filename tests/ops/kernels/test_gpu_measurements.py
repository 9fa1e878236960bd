"""The measurements of kernels in the interpreter: every line of them runs before a GPU is at hand."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_decode_cases, gpu_items, gpu_kernel_cases, gpu_kernels

SIZES = {"N": 16, "H": 64, "V": 300, "E": 16, "k": 2, "F": 128, "A": 2, "K": 1, "D": 16, "R": 32, "UPDATED": 4096}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SIZES.items():
        monkeypatch.setattr(gpu_kernel_cases, name, value)
    monkeypatch.setattr(gpu_kernel_cases, "RULE", gpu_kernel_cases.RULE._replace(num_experts_per_tok=2))
    for name, value in {"DEVICE": "cpu", "LARGE_COPY": 2**10, "LARGE_PRODUCT": 16}.items():
        monkeypatch.setattr(gpu_items, name, value)
    for name in ("max_memory_allocated", "memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda: 0)
    monkeypatch.setattr(gpu_kernels, "ROWS_OF_EXPERT", 3)
    monkeypatch.setattr(gpu_decode_cases, "HELD", 128)
    monkeypatch.setattr(gpu_kernels, "FEW_ROWS", 1)

    def once(function: Callable[[], Any], *_: int) -> list[float]:
        function()
        return [1.0] * 5

    monkeypatch.setattr(gpu_kernels, "timed", once)
    monkeypatch.setattr(gpu_kernels, "device_seconds", lambda function: once(function)[0])
    gpu_items.ceilings.cache_clear()
    gpu_kernels.fp8_ceiling.cache_clear()


QUICK = "kernels-bound-by-memory"
NAMES = [name for name, _, _ in gpu.ITEMS if name.startswith("kernels-")]


@pytest.mark.parametrize("name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
@pytest.mark.usefixtures("tiny")
def test_every_measurement_of_kernels_runs(name: str) -> None:
    (item,) = (run for known, _, run in gpu.ITEMS if known == name)
    numbers = item()
    assert json.dumps(numbers)
    assert numbers
    assert not [entry for entry in numbers.items() if "error" in str(entry)]


def test_a_kernel_that_fails_is_told_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tiny: None) -> None:
    def broken() -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(gpu_kernel_cases, "MEMORY_BOUND", [broken, gpu_kernel_cases.norm_forward])
    numbers = gpu_kernels.memory_bound_kernels()
    assert numbers["broken"] == {"error": "OutOfMemoryError: no room"}
    assert "us" in numbers["norm_forward"]
