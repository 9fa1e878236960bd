"""Model FLOPs utilisation: what a step needs by arithmetic, over what the devices could do in its time.

Counted are the matrix products of forward and backward (`scaling.flops`), attention over the documents as they are;
what is recomputed is not. The peak is that of products in the precision that training computes in: a data sheet's for
a GPU that is known, measured here for a CPU, none otherwise.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ling.config import ModelConfig
from ling.config.model import DType
from ling.scaling.flops import count_flops
from ling.scaling.hardware import HARDWARE

_SIZE = 1024
_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Peak:
    """What one process could do at most."""

    name: str
    flops_per_second: float


def find_peak(device: torch.device, precision: DType = "float32") -> Peak | None:
    """Return the peak of a device; on a CPU a product of 1,024 x 1,024 is tried for a third of a second."""
    if device.type == "cuda":
        found = torch.cuda.get_device_name(device)
        known = next((kind for name, kind in HARDWARE.items() if name.upper() in found.upper()), None)
        if known is None:
            return None
        tflops = known.float32_tflops if precision == "float32" else known.bf16_tflops
        return Peak(f"{tflops:g} TFLOP/s, {precision} of {known.name}", tflops * 1e12)
    a = torch.randn(_SIZE, _SIZE).to(getattr(torch, precision))
    best, end = float("inf"), time.perf_counter() + _SECONDS
    with torch.no_grad():
        while time.perf_counter() < end:
            began = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - began)
    speed = 2 * _SIZE**3 / best
    return Peak(f"{speed / 1e9:.0f} GFLOP/s, {precision} product measured on {torch.get_num_threads()} threads", speed)


def step_flops(model: ModelConfig, lengths: Sequence[int], tokens: int) -> float:
    """Return the FLOPs of a training step.

    lengths  of documents, such as the step has
    tokens   of the whole step
    """
    mean = round(sum(n * n for n in lengths) / max(1, sum(lengths)))  # attention's cost is quadratic
    return float(count_flops(model, mean).training) * tokens
