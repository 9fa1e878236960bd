"""The attention sub-layer: one call up to queries, keys and values, one behind attention."""

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ling.ops import attention
from ling.ops.cpu import library as lib
from ling.ops.cpu.linear import project
from ling.ops.rope import Rope


class CHeads(ctypes.Structure):
    """`Heads` of kernels.h."""

    _fields_ = [
        ("projection", lib.CMatrix),
        *((name, ctypes.c_void_p) for name in ("bias", "query_norm", "key_norm")),
        *((name, ctypes.c_int64) for name in ("A", "K", "D", "rotated")),
        ("eps", ctypes.c_double),
    ]


def why_not(
    x: Tensor,
    weights: "attention.AttentionWeights",
    heads: "attention.HeadShape",
    rope: Rope,
    attend: "attention.Attend",
) -> str | None:
    reason = lib.why_not_rows(x) or lib.why_not_weight(weights.query_key_value) or lib.why_not_weight(weights.dense)
    if reason is None and (weights.query_layernorm is None) != (weights.key_layernorm is None):
        return "only one of queries and keys is normalised"
    others = (weights.query_key_value_bias, weights.dense_bias, weights.query_layernorm, weights.key_layernorm)
    for values in (*others, rope.cos, rope.sin):
        reason = reason or lib.why_not_values(values)
    return reason


def rather_not(
    x: Tensor,
    weights: "attention.AttentionWeights",
    heads: "attention.HeadShape",
    rope: Rope,
    attend: "attention.Attend",
) -> str | None:
    return lib.many_floats(x, weights.query_key_value)


def forward(
    x: Tensor,
    weights: "attention.AttentionWeights",
    heads: "attention.HeadShape",
    rope: Rope,
    attend: "attention.Attend",
) -> Tensor:
    x = x.contiguous()
    A, K, D, _ = heads
    N = x.shape[0]
    q, k, v = torch.empty(N, A, D), torch.empty(N, K, D), torch.empty(N, K, D)
    assert rope.cos.shape == rope.sin.shape, (rope.cos.shape, rope.sin.shape)
    assert rope.cos.shape[0] == N, (rope.cos.shape, N)
    described = describe(weights, heads, x.shape[1], 2 * rope.cos.shape[1])
    pointers = [part.data_ptr() for part in (*rope, q, k, v)]
    lib.check(lib.opened().heads(x.data_ptr(), N, torch.get_num_threads(), described, *pointers))
    seen = attend(q, k, v).flatten(1).contiguous()
    return project(seen, weights.dense, weights.dense_bias, weights.dense.shape[0])  # type: ignore[arg-type, union-attr]


def describe(
    weights: "attention.AttentionWeights", heads: "attention.HeadShape", H: int, rotated: int
) -> "ctypes._Pointer[CHeads]":
    """Describe everything before attention; `rotated` channels of each head turn."""
    A, K, D, eps = heads
    projection, bias = weights.query_key_value, weights.query_key_value_bias
    assert projection.shape == ((A + 2 * K) * D, H), (projection.shape, heads, H)  # type: ignore[union-attr]
    assert bias is None or bias.numel() == (A + 2 * K) * D, (bias.shape, heads)
    for norm in (weights.query_layernorm, weights.key_layernorm):
        assert norm is None or norm.numel() == D, (norm.shape, D)
    return _describe(
        lib.fields(projection, (A + 2 * K) * D),  # type: ignore[arg-type]
        lib.address(bias),
        lib.address(weights.query_layernorm),
        lib.address(weights.key_layernorm),
        (A, K, D, rotated),
        eps,
    )


@lru_cache(maxsize=4096)
def _describe(projection: lib.Fields, bias: int, query: int, key: int, shape: Any, eps: float) -> Any:
    return ctypes.pointer(CHeads(lib.CMatrix(*projection), bias, query, key, *shape, eps))
