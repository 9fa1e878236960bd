"""Split, QK norm and half RoPE in one pass over the fused projection each way."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.attention import HeadShape
from ling.ops.rope import Rope
from ling.ops.torch.autograd import run
from ling.ops.triton.available import next_power_of_two, refuse

_MOST_CHANNELS = 16384
_PROGRAMS = 1024
"""Partial sums of the norms' gradients."""


def why_not(
    qkv: Tensor, query_weight: Tensor | None, key_weight: Tensor | None, heads: HeadShape, rope: Rope
) -> str | None:
    if query_weight is None or key_weight is None:
        return "there is no QK norm to fuse"
    if heads.D & (heads.D - 1):
        return f"heads of {heads.D} channels are not a power of two"
    if next_power_of_two(heads.A + 2 * heads.K) * heads.D > _MOST_CHANNELS:
        return "the heads of a token do not fit into registers"
    if {query_weight.dtype, key_weight.dtype, rope.cos.dtype} != {qkv.dtype}:
        return "weights and rotations have other dtypes than the projection"
    return refuse(qkv, query_weight, key_weight, rope.cos, rope.sin)


def forward(
    qkv: Tensor, query_weight: Tensor, key_weight: Tensor, heads: HeadShape, rope: Rope
) -> tuple[Tensor, Tensor, Tensor]:
    q: Tensor
    k: Tensor
    q, k, v = run(_SplitNormRope, qkv, query_weight, key_weight, rope.cos, rope.sin, heads)
    return q, k, v


class _SplitNormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor, heads: HeadShape
    ) -> tuple[Tensor, Tensor, Tensor]:
        from ling.ops.triton.kernels import attention_prologue as kernels

        A, K, D, eps = heads
        N = len(qkv)
        qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
        q, k, v = (qkv.new_empty(N, count, D) for count in (A, K, K))
        kernels.split_norm_rope_forward[(N,)](
            qkv, query_weight.contiguous(), key_weight.contiguous(), cos, sin, q, k, v, eps, **_sizes(heads, cos)
        )
        ctx.save_for_backward(qkv, query_weight, key_weight, cos, sin)
        ctx.heads = heads
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        from ling.ops.triton.kernels import attention_prologue as kernels

        qkv, query_weight, key_weight, cos, sin = ctx.saved_tensors
        N, programs = len(qkv), min(_PROGRAMS, len(qkv))
        dqkv = torch.empty_like(qkv)
        dweight = torch.empty(programs, 2, ctx.heads.D, dtype=torch.float32, device=qkv.device)
        kernels.split_norm_rope_backward[(programs,)](
            dq.contiguous(), dk.contiguous(), dv.contiguous(), qkv, query_weight.contiguous(), key_weight.contiguous(),
            cos, sin, dqkv, dweight, N, ctx.heads.eps, **_sizes(ctx.heads, cos),
        )  # fmt: skip
        of_query, of_key = dweight.sum(0).unbind(0)
        return dqkv, of_query.to(query_weight.dtype), of_key.to(key_weight.dtype), None, None, None


def _sizes(heads: HeadShape, cos: Tensor) -> dict[str, int]:
    padded = next_power_of_two(heads.A + 2 * heads.K)
    warps = min(8, max(1, padded * heads.D // 512))
    return {"A": heads.A, "K": heads.K, "D": heads.D, "HALF": cos.shape[1], "HEADS": padded, "num_warps": warps}
