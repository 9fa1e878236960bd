"""SwiGLU feed-forward in one call."""

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ling.ops.cpu import library as lib
from ling.ops.packed import PackedWeight


class CMlp(ctypes.Structure):
    """`Mlp` of kernels.h."""

    _fields_ = [("gate", lib.CMatrix), ("up", lib.CMatrix), ("down", lib.CMatrix)]


def why_not(x: Tensor, gate_proj: Any, up_proj: Any, down_proj: Any) -> str | None:
    return lib.why_not_rows(x) or why_not_weights(gate_proj, up_proj, down_proj)


def rather_not(x: Tensor, gate_proj: Any, up_proj: Any, down_proj: Any) -> str | None:
    return lib.many_floats(x, gate_proj)


def why_not_weights(gate: Any, up: Any, down: Any) -> str | None:
    """Why the three matrices of a feed-forward cannot be taken, or None."""
    reason = lib.why_not_weight(gate) or lib.why_not_weight(up) or lib.why_not_weight(down)
    if reason is None and lib.format_of(gate) != lib.format_of(up):
        return "gate and up are packed differently"
    return reason


def forward(x: Tensor, gate_proj: Any, up_proj: Any, down_proj: Any) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    described = describe(gate_proj, up_proj, down_proj)
    lib.check(
        lib.opened().mlp(x.data_ptr(), y.data_ptr(), x.numel() // x.shape[-1], torch.get_num_threads(), described)
    )
    return y


def describe(gate: Any, up: Any, down: Any) -> "ctypes._Pointer[CMlp]":
    return _describe(*fields(gate, up, down))


def fields(
    gate: Tensor | PackedWeight, up: Tensor | PackedWeight, down: Tensor | PackedWeight
) -> tuple[lib.Fields, lib.Fields, lib.Fields]:
    """Describe the three matrices of a feed-forward."""
    F, H = gate.shape
    assert up.shape == (F, H), (gate.shape, up.shape)
    assert down.shape == (H, F), (gate.shape, down.shape)
    return lib.fields(gate, F), lib.fields(up, F), lib.fields(down, H)


@lru_cache(maxsize=4096)
def _describe(*matrices: lib.Fields) -> "ctypes._Pointer[CMlp]":
    return ctypes.pointer(CMlp(*(lib.CMatrix(*m) for m in matrices)))
