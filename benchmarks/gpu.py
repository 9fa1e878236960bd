"""GPU tests and measurements in order of priority, each result on disk as soon as it is there.

    PYTHONPATH=src:. python3 -m benchmarks.gpu --out DIR --budget SECONDS

Runs on a bare machine: torch, triton, numpy, pyyaml, safetensors, tokenizers, pytest, hypothesis. An item that would
not fit into what is left of the budget is left out, and said so.
"""

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_fp8_backends, gpu_items, gpu_kernels, gpu_training
from benchmarks.results import save

# Name, seconds it may take, what it does. The first judges all others; then what most claims rest on. What follows may
# be left out by a budget of minutes, and the last one by one of half an hour.
ITEMS: list[tuple[str, float, Callable[[], dict[str, Any]]]] = [
    ("ceilings", 20, gpu_items.ceilings),
    ("train-one-gpu-ling-mini", 100, gpu_training.mini),
    ("decode-ling-mini-bf16", 100, gpu_items.decode),
    ("kernels-products-of-experts", 60, gpu_kernels.products),
    ("kernels-bound-by-memory", 60, gpu_kernels.memory_bound_kernels),
    ("train-one-gpu-ling-mini-mtp", 100, gpu_training.mini_with_mtp),
    ("prefill-ling-mini-bf16-2k", 60, gpu_items.prefill),
    ("kernels-experts-fp8-and-bf16", 40, gpu_kernels.experts),
    ("kernels-fp8-products-by-back-end", 60, gpu_fp8_backends.products),
    ("train-one-gpu-llama31-8b", 60, gpu_training.llama),
    ("train-one-gpu-qwen3-8b", 60, gpu_training.qwen),
    ("train-step-ling-mini-4-layers-bf16", 60, gpu_items.train_step),
    ("train-small-ling-fp8-and-bf16-200m-tokens", 2400, gpu_training.small_ling_gap),
]
TEST_SECONDS = 200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=540.0)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here: these measurements need one")
    deadline = time.monotonic() + given.budget
    failed = run_tests(given.out, min(TEST_SECONDS, given.budget))
    for name, seconds, item in ITEMS:
        left = deadline - time.monotonic()
        if left < seconds:
            print(f"{name}: left out, {left:.0f} s are left and it may take {seconds:.0f}")
            continue
        failed += run_item(name, item, given.out)
    sys.exit(1 if failed else 0)


def run_item(name: str, item: Callable[[], dict[str, Any]], out: Path) -> int:
    """Run one measurement; a failure is kept as its result and does not stop the others."""
    start = time.monotonic()
    try:
        numbers = item()
    except Exception:
        save(name, {"error": traceback.format_exc()}, out)
        print(f"{name}: failed\n{traceback.format_exc()}", flush=True)
        return 1
    finally:
        torch.cuda.empty_cache()
    save(name, {**numbers, "seconds": round(time.monotonic() - start, 1)}, out)
    print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in numbers.items()), flush=True)
    return 0


def run_tests(out: Path, limit: float) -> int:
    """Run the tests marked gpu and keep the end of what they print."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu"]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        printed, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        printed, code = str(error.stdout or ""), 124
    save("tests", {"exit_code": code, "seconds": round(time.monotonic() - start, 1), "end": printed[-4000:]}, out)
    print(printed[-6000:], flush=True)
    return code


if __name__ == "__main__":
    main()
