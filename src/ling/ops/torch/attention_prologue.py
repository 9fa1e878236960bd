"""Split, QK norm and half RoPE as one autograd function over whole heads."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.attention import HeadShape
from ling.ops.rope import Rope
from ling.ops.torch.autograd import run
from ling.ops.torch.norm import inverse_rms


def why_not(
    qkv: Tensor, query_weight: Tensor | None, key_weight: Tensor | None, heads: HeadShape, rope: Rope
) -> str | None:
    if qkv.dtype != torch.float32:
        return "only float32 has a single rounding"
    if query_weight is None or key_weight is None:
        return "there is no QK norm to fuse"
    return None


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
        ctx: Any,
        qkv: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: HeadShape,
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed_heads = heads.A + heads.K
        qk, v = qkv[:, :normed_heads], qkv[:, normed_heads:]
        weight = torch.cat([query_weight.expand(heads.A, -1), key_weight.expand(heads.K, -1)])  # (A + K, D)
        inv_rms = inverse_rms(qk, heads.eps)
        normed = (qk * inv_rms).mul_(weight)
        _rotate_(normed, cos, sin)
        ctx.save_for_backward(qkv, weight, inv_rms, cos, sin)
        ctx.heads = heads
        return normed[:, : heads.A], normed[:, heads.A :], v.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        qkv, weight, inv_rms, cos, sin = ctx.saved_tensors
        A, K, _, _ = ctx.heads
        qk = qkv[:, : A + K]
        dqkv = torch.cat([dq, dk, dv], dim=1)
        dnormed = dqkv[:, : A + K]
        _rotate_(dnormed, cos, -sin)
        normed = qk * inv_rms
        dy_normed = dnormed * normed
        dweight = dy_normed.sum(0)
        dot = (dy_normed * weight).sum(-1, keepdim=True).div_(qk.shape[-1])
        dnormed.mul_(weight).addcmul_(normed, dot, value=-1).mul_(inv_rms)
        return dqkv, dweight[:A].sum(0), dweight[A:].sum(0), None, None, None


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first 2 * cos.shape[1] channels of (N, heads, D) in place."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    a, b = x[..., :half], x[..., half : 2 * half]
    old_a = a.clone()
    a.mul_(cos).addcmul_(b, sin, value=-1)
    b.mul_(cos).addcmul_(old_a, sin)
