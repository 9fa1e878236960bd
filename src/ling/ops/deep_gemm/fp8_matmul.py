"""Rows in FP8 by one weight in FP8, by DeepGEMM.

It takes (codes, scales) as we have them, both row by row, and writes into `out`; on Hopper it puts the rows' scales
column by column itself, each column at a multiple of 16 bytes. Any number of rows.
"""

import torch
from torch import Tensor

from ling.ops.deep_gemm import library
from ling.ops.fp8_tensor import Fp8Tensor


def why_not(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> str | None:
    return library.refuse(rows, weight, dtype)


def forward(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(len(rows.codes), weight.shape[0], dtype=dtype, device=rows.codes.device)
    if len(out):
        multiply = getattr(library.load(), library.DENSE)
        multiply(
            (rows.codes.contiguous(), rows.scale.contiguous()), (weight.codes.contiguous(), weight.scale.contiguous()),
            out,
        )  # fmt: skip
    return out
