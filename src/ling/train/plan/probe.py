"""What this machine's CPU does, measured in a second or two, so that `ling plan --gpu cpu` speaks of it."""

import os
import time
from collections.abc import Callable

import torch

from ling.scaling import hardware as fact
from ling.scaling.hardware import Hardware

_SIZE = 1024
_COPIED = 2**26
_SECONDS = 0.3


def probe_cpu() -> Hardware:
    """Measure a float32 product, a bfloat16 one and a copy; return them as a device.

    Rates are divided by the fractions that a prediction multiplies with, so that it comes out at what was measured.
    """
    with torch.no_grad():
        a = torch.randn(_SIZE, _SIZE)
        float32 = 2 * _SIZE**3 / _best(lambda: a @ a)
        small = a[:256, :256].bfloat16().contiguous()
        bf16 = 2 * 256**3 / _best(lambda: small @ small)
        source, target = torch.zeros(_COPIED // 4), torch.zeros(_COPIED // 4)
        copied = 2 * _COPIED / _best(lambda: target.copy_(source))
    return Hardware(
        name=f"this CPU, {torch.get_num_threads()} threads",
        bf16_tflops=bf16 / 1e12 / fact.DENSE_GEMM,
        float32_tflops=float32 / 1e12 / fact.DENSE_GEMM,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        memory_gb_per_second=copied / 1e9 / fact.STREAMING,
        link_gb_per_second=copied / 1e9 / 4,  # through shared memory: copied in and out, by both sides
        network_gb_per_second=1,
        gpus_per_node=max(1, (os.cpu_count() or 1) // torch.get_num_threads()),
    )


def _best(work: Callable[[], object]) -> float:
    """Return the shortest seconds of a call."""
    work()
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
