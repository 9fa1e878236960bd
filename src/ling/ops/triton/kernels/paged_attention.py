"""Attention of few new rows to a cache of blocks, keys divided among programs (split K), then put together.

A part is always the same number of keys, counted from the first one of the sequence, so that what a row gets does not
depend on how long others are.
"""

import triton
import triton.language as tl

# Grid: new rows by key-value heads by parts of CHUNK keys; then new rows by query heads. Softmax and sums in float32,
# products in the dtype of q. Heads up to 256 channels, up to 64 query heads for a key-value head, any number of keys.


@triton.jit
def _load(codes, scale, at, of_scale, seen, dtype: tl.constexpr):
    values = tl.load(codes + at, seen[:, None], other=0.0)
    if scale is None:
        return values.to(dtype)
    else:
        return (values.to(tl.float32) * tl.load(scale + of_scale, seen, other=0.0)[:, None]).to(dtype)


@triton.jit(do_not_specialize=["T", "PARTS"])
def attend_to_part(
    q, keys, values, key_scale, value_scale, tables, spans, sequence_of_row, index_in_sequence, out, best, total, T,
    A: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, PARTS,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """q (N, A, D) -> out (N, A, PARTS, D), best and total (N, A, PARTS) float32; spans as in `HeldBlocks`."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    sequence = tl.load(sequence_of_row + row)
    new = tl.load(spans + sequence * 3)
    held = tl.load(spans + sequence * 3 + 1)
    first_seen = tl.load(spans + sequence * 3 + 2)
    end = held - new + tl.load(index_in_sequence + row) + 1  # this row sees keys before it
    PER_HEAD: tl.constexpr = A // K
    queries = tl.arange(0, GROUP)
    channels = tl.arange(0, D)
    mine = queries < PER_HEAD
    dtype = q.dtype.element_ty
    a = head * PER_HEAD + queries
    x = tl.load(q + (row * A + a[:, None]) * D + channels[None, :], mine[:, None], other=0.0)
    m = tl.full((GROUP,), -1.0e30, tl.float32)
    sums = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, D), tl.float32)
    stop = tl.minimum(end, (part + 1) * CHUNK).to(tl.int32)
    for start in range(part * CHUNK, stop, BLOCK):
        token = start + tl.arange(0, BLOCK)
        seen = (token < end) & (token >= first_seen)
        block = tl.load(tables + sequence * T + token // P, seen, other=0)
        slot = (block * P + token % P) * K + head
        at = slot[:, None] * D + channels[None, :]
        key = _load(keys, key_scale, at, slot, seen, dtype)
        scores = tl.dot(x, tl.trans(key), input_precision="ieee") * SCALE
        scores = tl.where(seen[None, :], scores, -1.0e30)
        higher = tl.maximum(m, tl.max(scores, 1))
        p = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
        shrink = tl.exp(m - higher)
        sums = sums * shrink + tl.sum(p, 1)
        value = _load(values, value_scale, at, slot, seen, dtype)
        acc = acc * shrink[:, None] + tl.dot(p.to(dtype), value, input_precision="ieee")
        m = higher
    to = (row * A + a) * PARTS + part
    tl.store(out + to[:, None] * D + channels[None, :], acc, mine[:, None])
    tl.store(best + to, m, mine)
    tl.store(total + to, sums, mine)


@triton.jit(do_not_specialize=["PARTS"])
def join_parts(parts, best, total, out, A: tl.constexpr, D: tl.constexpr, PARTS):
    """parts (N, A, PARTS, D) -> out (N, A, D), parts in order; those that saw nothing count for nothing."""
    at = tl.program_id(0).to(tl.int64) * A + tl.program_id(1)
    channels = tl.arange(0, D)
    m = tl.full((1,), -1.0e30, tl.float32)
    sums = tl.zeros((1,), tl.float32)
    acc = tl.zeros((D,), tl.float32)
    for part in range(0, PARTS):
        of_part = at * PARTS + part + tl.arange(0, 1)
        other = tl.load(best + of_part)
        higher = tl.maximum(m, other)
        before, now = tl.exp(m - higher), tl.exp(other - higher)
        sums = sums * before + tl.load(total + of_part) * now
        acc = acc * before + tl.load(parts + (at * PARTS + part) * D + channels) * now
        m = higher
    tl.store(out + at * D + channels, (acc / sums).to(out.dtype.element_ty))
