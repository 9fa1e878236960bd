"""AdamW on whatever weights and moments are kept in, without a copy of anything in float32."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.triton.available import refuse, refuse_fp8

_ROWS = 4
_FP8 = torch.float8_e4m3fn
_MOMENTS = (torch.float32, torch.bfloat16, _FP8)


class Moment(NamedTuple):
    """A moment as it is kept."""

    codes: Tensor
    """float32, bfloat16, or float8_e4m3fn (of a square: codes of its root)."""
    scale: Tensor | None
    """(ceil(n / 256),) float32 where codes are E4M3."""


class AdamWRule(NamedTuple):
    """The numbers of one update."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    stochastic: bool
    """Whether bfloat16 weights are rounded by chance, else to nearest; moments in few bits always are."""


def why_not(weight: Tensor, gradient: Tensor, mean: Moment, square: Moment, step: Tensor) -> str | None:
    """Return why the kernel cannot do this update, None where it can."""
    for moment in (mean, square):
        if moment.codes.dtype not in _MOMENTS:
            return f"it does not know moments in {moment.codes.dtype}"
        if not moment.codes.is_contiguous():
            return "moments are not contiguous"
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    check = refuse_fp8 if _FP8 in (mean.codes.dtype, square.codes.dtype) else refuse
    return check(weight, gradient, mean.codes, square.codes, step)


def update_(
    weight: Tensor, gradient: Tensor, mean: Moment, square: Moment, step: Tensor, key: int, rule: AdamWRule
) -> None:
    """Update weight (n elements) and moments in place.

    gradient  (n,) bfloat16 or float32
    step      () float32 on the device, the number of updates before this one; it is not changed
    key       of the noise (`ops.noise.noise_key`); an element's position is its index in `weight`
    """
    from ling.ops.triton.kernels import adamw as kernels

    n = weight.numel()
    assert n == gradient.numel() == mean.codes.numel() == square.codes.numel(), (weight.shape, gradient.shape)
    kernels.adamw[(-(-n // (256 * _ROWS)),)](
        weight, gradient.contiguous(), *mean, *square, step, n, key - (1 << 64) if key >= 1 << 63 else key,
        rule.lr, rule.weight_decay, rule.eps, BETA1=rule.beta1, BETA2=rule.beta2, LOG_BETA1=math.log(rule.beta1),
        LOG_BETA2=math.log(rule.beta2), STOCHASTIC=rule.stochastic, ROWS=_ROWS,
    )  # fmt: skip
