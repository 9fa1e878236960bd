"""Split the fused projection, normalise each query and key head, rotate its first channels; and back.

A channel is rotated together with its partner half a rotation away. Instead of splitting heads in registers, each
head is read a second time with partners swapped: those lines are in the first-level cache.
"""

import triton
import triton.language as tl

# Grid: one program per token forward; backward as many programs as there are partial sums of the norms' gradients,
# each over every so-many-th token. Sums in float32, roundings to the dtype of x where the published model has them.
# All heads of a token are in registers: at most 16384 channels, padded to a power of two.


@triton.jit
def _partners(channels, HALF: tl.constexpr):
    """Who each channel is rotated with (itself beyond the rotated ones), and the sign of that one's share."""
    rotated = channels < 2 * HALF
    first = channels < HALF
    partner = tl.where(first, channels + HALF, tl.where(rotated, channels - HALF, channels))
    return partner, tl.where(first, -1.0, 1.0), rotated


@triton.jit
def _angles(cos, sin, token, channels, rotated, HALF: tl.constexpr):
    at = token * HALF + channels % HALF
    c = tl.load(cos + at, rotated, other=1.0).to(tl.float32)
    s = tl.load(sin + at, rotated, other=0.0).to(tl.float32)
    return c[None, :], s[None, :]


@triton.jit
def _weights(query_weight, key_weight, channels, is_query):
    q = tl.load(query_weight + channels).to(tl.float32)
    k = tl.load(key_weight + channels).to(tl.float32)
    return tl.where(is_query[:, None], q[None, :], k[None, :])


@triton.jit
def split_norm_rope_forward(
    qkv, query_weight, key_weight, cos, sin, q, k, v, eps,
    A: tl.constexpr, K: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS)
    channels = tl.arange(0, D)
    dtype = qkv.dtype.element_ty
    partner, sign, rotated = _partners(channels, HALF)
    is_query = heads < A
    is_key = (heads >= A) & (heads < A + K)
    is_value = (heads >= A + K) & (heads < A + 2 * K)
    held = (heads < A + 2 * K)[:, None]
    row = qkv + token * ((A + 2 * K) * D) + heads[:, None] * D
    x = tl.load(row + channels[None, :], held, other=0.0)
    other = tl.load(row + partner[None, :], held, other=0.0).to(tl.float32)
    x32 = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x32 * x32, 1) / D + eps)[:, None]
    x32 = (x32 * inverse).to(dtype).to(tl.float32) * _weights(query_weight, key_weight, channels, is_query)
    other = (other * inverse).to(dtype).to(tl.float32) * _weights(query_weight, key_weight, partner, is_query)
    normed = x32.to(dtype).to(tl.float32)
    c, s = _angles(cos, sin, token, channels, rotated, HALF)
    turned = (normed * c).to(dtype).to(tl.float32)
    turned += (other.to(dtype).to(tl.float32) * s).to(dtype).to(tl.float32) * sign[None, :]
    out = tl.where(rotated[None, :], turned, normed).to(dtype)
    at = heads[:, None] * D + channels[None, :]
    tl.store(q + token * (A * D) + at, out, is_query[:, None])
    tl.store(k + token * (K * D) + at - A * D, out, is_key[:, None])
    tl.store(v + token * (K * D) + at - (A + K) * D, x, is_value[:, None])


@triton.jit
def split_norm_rope_backward(
    dq, dk, dv, qkv, query_weight, key_weight, cos, sin, dqkv, dweight, N, eps,
    A: tl.constexpr, K: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """dweight is (programs, 2, D) float32: of the queries' norm, then of the keys'."""
    heads = tl.arange(0, HEADS)
    channels = tl.arange(0, D)
    partner, sign, rotated = _partners(channels, HALF)
    is_query = heads < A
    is_key = (heads >= A) & (heads < A + K)
    is_value = (heads >= A + K) & (heads < A + 2 * K)
    weight = _weights(query_weight, key_weight, channels, is_query)
    of_query = tl.zeros((D,), tl.float32)
    of_key = tl.zeros((D,), tl.float32)
    at = heads[:, None] * D + channels[None, :]
    swapped = heads[:, None] * D + partner[None, :]
    for index in range(tl.program_id(0), N, tl.num_programs(0)):
        token = tl.full((), index, tl.int64)
        to_q, to_k, to_v = dq + token * (A * D), dk + token * (K * D) - A * D, dv + token * (K * D) - (A + K) * D
        dy = tl.load(to_q + at, is_query[:, None], other=0.0).to(tl.float32)
        dy += tl.load(to_k + at, is_key[:, None], other=0.0).to(tl.float32)
        other = tl.load(to_q + swapped, is_query[:, None], other=0.0).to(tl.float32)
        other += tl.load(to_k + swapped, is_key[:, None], other=0.0).to(tl.float32)
        c, s = _angles(cos, sin, token, channels, rotated, HALF)
        dnormed = tl.where(rotated[None, :], dy * c - sign[None, :] * other * s, dy)
        row = token * ((A + 2 * K) * D)
        x = tl.load(qkv + row + at, (is_query | is_key)[:, None], other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        normed = x * inverse
        share = dnormed * normed.to(qkv.dtype.element_ty).to(tl.float32)
        of_query += tl.sum(tl.where(is_query[:, None], share, 0.0), 0)
        of_key += tl.sum(tl.where(is_key[:, None], share, 0.0), 0)
        g = dnormed * weight
        dx = inverse * (g - normed * (tl.sum(g * normed, 1) / D)[:, None])
        dx += tl.load(to_v + at, is_value[:, None], other=0.0).to(tl.float32)
        tl.store(dqkv + row + at, dx.to(dqkv.dtype.element_ty), (heads < A + 2 * K)[:, None])
    to = dweight + tl.program_id(0) * (2 * D) + channels
    tl.store(to, of_query)
    tl.store(to + D, of_key)
