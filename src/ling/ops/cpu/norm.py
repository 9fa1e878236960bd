"""RMSNorm of float32 rows: there the two roundings of the published order are one."""

import torch
from torch import Tensor

from ling.ops.cpu import library as lib


def why_not(x: Tensor, weight: Tensor, eps: float) -> str | None:
    return lib.why_not_rows(x) or lib.why_not_values(weight)


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    H = x.shape[-1]
    assert weight.numel() == H, (weight.shape, x.shape)
    arguments = (x.numel() // H, torch.get_num_threads(), weight.data_ptr(), H, eps)
    lib.opened().rms_norm(x.data_ptr(), y.data_ptr(), *arguments)
    return y
