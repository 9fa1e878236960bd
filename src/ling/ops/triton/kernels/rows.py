"""Tokens to rows sorted by expert and back: the map between them, the gather, the weighted sum.

The map is a counting sort of (token, choice) pairs: how many pairs of each block of them go to each expert, where the
block's first one lies (a running sum over blocks, by torch), and each pair's rank among its block's. Pairs of an expert
stay in order, nothing is atomic, nothing is asked of the device.
"""

import triton
import triton.language as tl

# Grid: BLOCK pairs per program for the map; ROWS rows by BLOCK bytes or channels per program for the gather; a token by
# BLOCK channels for the sum, which is float32, choices in order. At most 4096 experts; any number of tokens.


@triton.jit
def count_pairs(ids, counts, R, E: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """ids (R,) -> counts (blocks, E) int32."""
    pairs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    experts = tl.load(ids + pairs, pairs < R, other=0).to(tl.int32)
    histogram = tl.histogram(experts, EXPERTS)
    columns = tl.arange(0, EXPERTS)
    missing = tl.maximum((tl.program_id(0) + 1) * BLOCK - R, 0)  # pairs that are not there were counted as expert 0
    histogram -= tl.where(columns == 0, missing, 0)
    tl.store(counts + tl.program_id(0).to(tl.int64) * E + columns, histogram, columns < E)


@triton.jit
def place_pairs(ids, first, pair_of_slot, slot_of_pair, R, E: tl.constexpr, BLOCK: tl.constexpr):
    """first (blocks, E) int64: the slot of the first pair of each block for each expert."""
    index = tl.arange(0, BLOCK)
    pairs = tl.program_id(0) * BLOCK + index
    experts = tl.load(ids + pairs, pairs < R, other=-1).to(tl.int32)
    earlier = (experts[:, None] == experts[None, :]) & (index[None, :] < index[:, None])
    rank = tl.sum(earlier.to(tl.int32), 1)
    begin = tl.load(first + tl.program_id(0).to(tl.int64) * E + experts, pairs < R, other=0)
    slot = begin + rank
    tl.store(slot_of_pair + pairs, slot, pairs < R)
    tl.store(pair_of_slot + slot, pairs.to(tl.int64), pairs < R)


@triton.jit
def gather_rows(
    x, x_scale, pair_of_slot, out, out_scale, S, R,
    CHOICES: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    TILES: tl.constexpr, BLOCK_TILES: tl.constexpr,
):  # fmt: skip
    """x (N, H) -> out (S, H), each slot's token, zeros where it has none; scales (N, TILES) with it if there are."""
    slots = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    pairs = tl.load(pair_of_slot + slots, slots < S, other=R)
    there = pairs < R
    tokens = (pairs // CHOICES)[:, None]
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    values = tl.load(x + tokens * H + columns, there[:, None] & (columns < H), other=0)
    tl.store(out + slots[:, None] * H + columns, values, (slots < S)[:, None] & (columns < H))
    if x_scale is not None:
        tiles = tl.arange(0, BLOCK_TILES)[None, :]
        scale = tl.load(x_scale + tokens * TILES + tiles, there[:, None] & (tiles < TILES), other=1.0)
        tl.store(out_scale + slots[:, None] * TILES + tiles, scale, (slots < S)[:, None] & (tiles < TILES))


@triton.jit
def combine_rows(
    rows, slot_of_pair, mix, out,
    CHOICES: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """rows (S, H) -> out (N, H), the sum over a token's choices, each times mix (N, k) if there is one."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(CHOICES):
        slot = tl.load(slot_of_pair + token * CHOICES + choice)
        value = tl.load(rows + slot * H + columns, columns < H, other=0.0).to(tl.float32)
        if mix is not None:
            value *= tl.load(mix + token * CHOICES + choice)
        total += value
    tl.store(out + token * H + columns, total.to(out.dtype.element_ty), columns < H)
