"""Rows in FP8 by one weight in FP8, by cuBLASLt.

What it wants (pytorch/pytorch#166752), L being K / 128:

    codes   (N, K) row by row, (K, M) column by column: a weight as it lies, transposed without a copy
    scales  of rows (N, L) column by column; of blocks (L, M / 128) column by column, with room to a multiple of 4
            below each column. Blocks without that room were read wrongly, and silently, before torch 2.10

The columns of the rows' scales begin at multiples of 16 bytes, so rows are made a multiple of 4.
"""

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, pad, scaled_mm

from ling.ops import hopper
from ling.ops.fp8_tensor import Fp8Tensor

_MULTIPLE = 4
_OLDEST_CUDA = (12, 9)


def why_not(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> str | None:
    return hopper.refuse_device(rows.codes.device) or _refuse_cuda() or hopper.refuse_operands(rows, weight, dtype)


def forward(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> Tensor:
    N, missing = len(rows.codes), -len(rows.codes) % _MULTIPLE
    if N == 0:
        return torch.empty(0, weight.shape[0], dtype=dtype, device=rows.codes.device)
    codes, scale = rows.codes.contiguous(), rows.scale
    if missing:
        codes = pad(codes.view(torch.uint8), (0, 0, 0, missing)).view(codes.dtype)  # code 0 is the value 0
        scale = pad(scale, (0, 0, 0, missing), value=1.0)
    out = scaled_mm(
        codes, weight.codes.contiguous().t(),
        _column_by_column(scale), ScalingType.BlockWise1x128,
        _column_by_column(pad(weight.scale, (0, -weight.scale.shape[1] % _MULTIPLE)).t()), ScalingType.BlockWise128x128,
        output_dtype=dtype, use_fast_accum=False,  # blocks of K are added up in float32, as in our kernels
    )  # fmt: skip
    return out[:N]


def _column_by_column(scale: Tensor) -> Tensor:
    """Return the same matrix with strides (1, rows), also where it has one row or column and torch would not care."""
    there = torch.empty_strided(scale.shape, (1, len(scale)), dtype=scale.dtype, device=scale.device)
    return there.copy_(scale)


def _refuse_cuda() -> str | None:
    """Return why this torch's cuBLASLt has no such products, None where it has."""
    built = torch.version.cuda or "none"
    oldest = ".".join(map(str, _OLDEST_CUDA))
    if built == "none" or tuple(int(part) for part in built.split(".")[:2]) < _OLDEST_CUDA:
        return f"it needs a torch that is built with CUDA {oldest} or later, and this one has {built}"
    return None
