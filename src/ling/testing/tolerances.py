"""How far apart two results may be, and why. Exact equality is used wherever the algorithm allows it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|difference| <= absolute + relative * max|expected|, over a whole tensor."""

    absolute: float
    relative: float
    reason: str


GOLDEN = Tolerance(1e-4, 1e-5, "tests/golden/README.md: five times the spread of correct float32 implementations")
GOLDEN_FAR = Tolerance(2e-3, 1e-5, "golden README: one ulp of a frequency times position 2000 is visible")
GOLDEN_LOSS = Tolerance(1e-5, 1e-5, "golden README, losses")
GOLDEN_FAR_LOSS = Tolerance(1e-4, 1e-5, "golden manifest, losses of far runs")
GOLDEN_GRAD = Tolerance(2e-6, 1e-4, "golden README, gradients")
SUM_ORDER = Tolerance(1e-6, 2e-5, "float32 sums of a few hundred terms taken in another order")
BATCHING = Tolerance(1e-5, 1e-5, "float32 GEMMs of other row counts block their sums otherwise, layer upon layer")


def excess(got: Tensor, expected: Tensor, tolerance: Tolerance) -> str | None:
    """Return None if `got` is close enough, or a sentence with the numbers."""
    if got.shape != expected.shape:
        return f"shape {tuple(got.shape)} is not {tuple(expected.shape)}"
    if expected.numel() == 0:
        return None
    got, expected = got.detach().double(), expected.detach().double()
    if not bool(torch.isfinite(got).all()):
        return "values are not finite"
    largest = float((got - expected).abs().max())
    allowed = tolerance.absolute + tolerance.relative * float(expected.abs().max())
    return None if largest <= allowed else f"differs by {largest:.3g}, allowed {allowed:.3g} ({tolerance.reason})"


def assert_close(got: Tensor, expected: Tensor, tolerance: Tolerance, what: str = "result") -> None:
    """Fail with the numbers if two tensors are further apart than `tolerance`."""
    sentence = excess(got, expected, tolerance)
    assert sentence is None, f"{what}: {sentence}"
