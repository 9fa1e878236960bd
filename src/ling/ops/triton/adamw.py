"""AdamW on whatever weights and moments are kept in, without a copy of anything in float32."""

import math

import torch
from torch import Tensor

from ling.ops.adamw import AdamWRule, Moment
from ling.ops.noise import signed_int
from ling.ops.triton.available import refuse, refuse_fp8

ROWS = 4
FP8 = torch.float8_e4m3fn
MOMENTS = (torch.float32, torch.bfloat16, FP8)


def why_not(
    weight: Tensor, gradient: Tensor, mean: Moment, square: Moment, step: Tensor, key: int, rule: AdamWRule,
    offset: int = 0,
) -> str | None:  # fmt: skip
    for moment in (mean, square):
        if moment.codes.dtype not in MOMENTS:
            return f"it does not know moments in {moment.codes.dtype}"
        if not moment.codes.is_contiguous():
            return "moments are not contiguous"
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    check = refuse_fp8 if FP8 in (mean.codes.dtype, square.codes.dtype) else refuse
    return check(weight, gradient, mean.codes, square.codes, step)


def forward(
    weight: Tensor, gradient: Tensor, mean: Moment, square: Moment, step: Tensor, key: int, rule: AdamWRule,
    offset: int = 0,
) -> None:  # fmt: skip
    from ling.ops.triton.kernels import adamw as kernels

    n = weight.numel()
    assert n == gradient.numel() == mean.codes.numel() == square.codes.numel(), (weight.shape, gradient.shape)
    kernels.adamw[(-(-n // (256 * ROWS)),)](
        weight, gradient.contiguous(), *mean, *square, step, n, signed_int(key), offset,
        rule.lr, rule.weight_decay, rule.eps, BETA1=rule.beta1, BETA2=rule.beta2, LOG_BETA1=math.log(rule.beta1),
        LOG_BETA2=math.log(rule.beta2), STOCHASTIC=rule.stochastic, ROWS=ROWS,
    )  # fmt: skip
