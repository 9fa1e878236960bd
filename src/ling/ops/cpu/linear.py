"""A matrix times rows of activations; for a packed one they are rounded to int8 per group of 32."""

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from ling.ops import linear
from ling.ops.cpu import library as lib
from ling.ops.packed import PackedWeight


def why_not(x: Tensor, weight: "linear.Weight | linear.Projection", bias: Tensor | None = None) -> str | None:
    return lib.why_not_rows(x) or lib.why_not_weight(weight) or lib.why_not_values(bias)


def rather_not(x: Tensor, weight: "linear.Weight | linear.Projection", bias: Tensor | None = None) -> str | None:
    return lib.many_floats(x, weight)


def forward(x: Tensor, weight: "Tensor | PackedWeight", bias: Tensor | None = None) -> Tensor:
    M, K = weight.shape
    assert x.shape[-1] == K, (x.shape, weight.shape)
    return project(x.contiguous(), weight, bias, M)


def project(x: Tensor, weight: "linear.Weight", bias: Tensor | None, rows: int) -> Tensor:
    """Multiply contiguous rows (..., K) by a matrix of `rows` rows in any format that the library takes."""
    assert bias is None or bias.numel() == rows, (bias.shape, rows)
    y = torch.empty(*x.shape[:-1], rows)
    count = x.numel() // x.shape[-1]
    pointers = (_describe(*lib.fields(weight, rows)), lib.address(bias))
    lib.check(lib.opened().linear(x.data_ptr(), y.data_ptr(), count, torch.get_num_threads(), *pointers))
    return y


@lru_cache(maxsize=4096)
def _describe(*matrix: int) -> "ctypes._Pointer[lib.CMatrix]":
    return ctypes.pointer(lib.CMatrix(*matrix))
