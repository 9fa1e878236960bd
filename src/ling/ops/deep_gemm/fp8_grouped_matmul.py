"""Rows in FP8, sorted by expert, each by the weight of its expert, by DeepGEMM; nothing is asked of the device.

It takes an expert for every row, -1 for rows that it may leave out, and looks only at the first of each 128: an
expert's rows begin at a multiple of 128 (`ling.config.fp8.row_multiple`), which nobody can check without waiting.
"""

import torch
from torch import Tensor

from ling.ops.deep_gemm import library
from ling.ops.fp8 import BLOCK
from ling.ops.fp8_tensor import Fp8Tensor


def why_not(rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> str | None:
    if len(rows.codes) % BLOCK:
        return f"{len(rows.codes)} rows are no multiple of {BLOCK}, which every expert's must be"
    return library.refuse(rows, weights, dtype)


def forward(rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(len(rows.codes), weights.shape[1], dtype=dtype, device=rows.codes.device)
    if len(out):
        multiply = getattr(library.load(), library.GROUPED)
        multiply(
            (rows.codes.contiguous(), rows.scale.contiguous()),
            (weights.codes.contiguous(), weights.scale.contiguous()),
            out, experts_of_rows(offsets, len(out)),
        )  # fmt: skip
    return out


def experts_of_rows(offsets: Tensor, S: int) -> Tensor:
    """Return each row's expert (S,) int32, -1 past the last; offsets (E,) are where experts' rows end."""
    row = torch.arange(S, dtype=offsets.dtype, device=offsets.device)
    expert = torch.searchsorted(offsets, row, right=True, out_int32=True)
    return expert.masked_fill_(expert == len(offsets), -1)
