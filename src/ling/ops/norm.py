"""RMSNorm in the published rounding order."""

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.precision import at_least_float32


@op(cpu="ling.ops.cpu.norm", triton="ling.ops.triton.norm", torch="ling.ops.torch.norm")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of `x` to unit root-mean-square, then by `weight`.

    x       (..., H)  bfloat16, float32 or float64
    weight  (H,)
    return  (..., H)  dtype of weight * x; squares are summed in float32 (spec: model.md 4.1)
    """
    x32 = at_least_float32(x)
    inv_rms = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * (x32 * inv_rms).to(x.dtype)  # two roundings, as the published model does
