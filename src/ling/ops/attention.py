"""Grouped-query attention over ragged sequences, and the whole attention sub-layer built on it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.backend import coarse_op, op
from ling.ops.linear import Projection, Weight, linear
from ling.ops.norm import rms_norm
from ling.ops.precision import at_least_float32
from ling.ops.ragged import Ragged
from ling.ops.rope import Rope, apply_rope

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(N, A, D) queries, (N, K, D) keys and values of the new tokens -> (N, A, D)."""


class AttentionWeights(NamedTuple):
    """The weights of one attention sub-layer."""

    query_key_value: Weight | Projection
    """((A + 2K) * D, H): all query heads, all key heads, all value heads."""
    query_key_value_bias: Tensor | None
    query_layernorm: Tensor | None
    """(D,) None: no QK norm."""
    key_layernorm: Tensor | None
    dense: Weight | Projection
    """(H, A * D)."""
    dense_bias: Tensor | None


class HeadShape(NamedTuple):
    """A query heads, K key-value heads of D channels, and the epsilon of their norm."""

    A: int
    K: int
    D: int
    eps: float


@coarse_op(cpu="ling.ops.cpu.attention")
def attention_step(x: Tensor, weights: AttentionWeights, heads: HeadShape, rope: Rope, attend: Attend) -> Tensor:
    """Project, normalise, rotate, attend, project back.

    x       (N, H)  normalised hidden states
    attend  where the new keys and values go and what the queries see
    return  (N, H)
    """
    A, K, D, _ = heads
    qkv = linear(x, weights.query_key_value, weights.query_key_value_bias).view(-1, A + 2 * K, D)
    q, k, v = split_norm_rope(qkv, weights.query_layernorm, weights.key_layernorm, heads, rope)
    return linear(attend(q, k, v).flatten(1), weights.dense, weights.dense_bias)


@op(triton="ling.ops.triton.attention_prologue", torch="ling.ops.torch.attention_prologue")
def split_norm_rope(
    qkv: Tensor, query_weight: Tensor | None, key_weight: Tensor | None, heads: HeadShape, rope: Rope
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the fused projection; normalise each query and key head, then rotate it (spec: model.md 4.2).

    qkv     (N, A + 2K, D)
    return  (N, A, D), (N, K, D), (N, K, D)
    """
    q, k, v = qkv.split([heads.A, heads.K, heads.K], 1)
    if query_weight is not None and key_weight is not None:
        q, k = rms_norm(q, query_weight, heads.eps), rms_norm(k, key_weight, heads.eps)
    return apply_rope(q, rope), apply_rope(k, rope), v


@op(torch="ling.ops.torch.attention")
def attention(q: Tensor, k: Tensor, v: Tensor, q_rows: Ragged, k_rows: Ragged) -> Tensor:
    """Attend causally within each sequence; the queries are its last rows.

    q       (N, A, D)   rows of B sequences
    k, v    (M, K, D)   rows of the same sequences, each at least as long as its queries
    return  (N, A, D)

    Query heads share key-value heads contiguously. Scores are scaled by 1 / sqrt(D); softmax in float32.
    """
    per_kv_head = q.shape[1] // k.shape[1]
    keys = k.repeat_interleave(per_kv_head, 1).split(k_rows.lengths)
    values = v.repeat_interleave(per_kv_head, 1).split(k_rows.lengths)
    outputs = []
    for qs, ks, vs in zip(q.split(q_rows.lengths), keys, values):
        scores = torch.einsum("nad,mad->anm", qs, ks) * q.shape[2] ** -0.5
        n, m = scores.shape[1:]
        visible = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        scores = at_least_float32(scores).masked_fill(~visible, -torch.inf)
        outputs.append(torch.einsum("anm,mad->nad", scores.softmax(-1).to(q.dtype), vs))
    return torch.cat(outputs)


def visible_keys(new: Tensor, held: Tensor, longest_new: int, longest_held: int) -> Tensor:
    """Return what each new row sees: itself and what came before it.

    new, held  (B,) int64, new rows of each sequence, and all its rows
    return     (B, longest_new, longest_held) bool; query i is row held - new + i of its sequence
    """
    i = torch.arange(longest_new, device=new.device)
    j = torch.arange(longest_held, device=new.device)
    last = (held - new)[:, None] + i  # (B, longest_new)
    return j <= last[..., None]
