"""Products of FP8 codes: rows in 1x128 tiles by weights in 128x128 blocks, one weight or one per expert.

The tensor core sums a 128-wide block of K by itself, with fewer than float32's bits; every block is then scaled and
added up in float32, so errors do not grow with K.
"""

import triton
import triton.language as tl

# Grid: one program per BLOCK_M x BLOCK_N tile of the result, tiles of a row of tiles side by side in time, so that rows
# are read once and an expert's weight stays in the second-level cache. For experts the grid is what the worst division
# of rows needs; programs that find nothing to do end at once. Accumulation in float32. Any size; K in steps of 128.


@triton.jit
def _tile_of_expert(offsets, tile, E: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Find whose rows a tile has: expert (E or more: nobody's), first row, and the end of the expert's rows."""
    experts = tl.arange(0, EXPERTS)
    there = experts < E
    ends = tl.load(offsets + experts, there, other=0)
    begins = tl.load(offsets + experts - 1, there & (experts > 0), other=0)
    tiles = tl.where(there, (ends - begins + BLOCK_M - 1) // BLOCK_M, 0)
    past = tl.cumsum(tiles, 0)
    expert = tl.sum((past <= tile).to(tl.int32), 0)
    mine = experts == expert
    begin = tl.sum(tl.where(mine, begins, 0), 0)
    end = tl.sum(tl.where(mine, ends, 0), 0)
    before = tl.sum(tl.where(mine, past - tiles, 0), 0)
    return expert, begin + (tile - before) * BLOCK_M, end


@triton.jit
def fp8_matmul(
    rows, row_scale, weight, weight_scale, offsets, out, S,
    E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """rows (S, K), weight (E, M, K) -> out (S, M); offsets (E,) int32, or None for one weight that takes all rows."""
    TILES_N: tl.constexpr = (M + BLOCK_N - 1) // BLOCK_N
    BLOCKS_K: tl.constexpr = (K + 127) // 128
    BLOCKS_M: tl.constexpr = (M + 127) // 128
    tile = tl.program_id(0) // TILES_N
    n = tl.program_id(0) % TILES_N
    if offsets is None:
        expert, first, end = 0, tile * BLOCK_M, S
    else:
        expert, first, end = _tile_of_expert(offsets, tile, E, EXPERTS, BLOCK_M)
        if expert >= E:
            return
    r = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
    mine = r < end
    m = n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, 128)
    from_rows = rows + r[:, None] * K + k[None, :]
    from_weight = weight + tl.cast(expert, tl.int64) * (M * K) + m[None, :] * K + k[:, None]
    from_scale = weight_scale + tl.cast(expert, tl.int64) * (BLOCKS_M * BLOCKS_K) + n * BLOCK_N // 128 * BLOCKS_K
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(0, BLOCKS_K):
        if K % 128 == 0:
            a = tl.load(from_rows, mine[:, None], other=0.0)
            b = tl.load(from_weight, (m < M)[None, :], other=0.0)
        else:
            held = k < K - block * 128
            a = tl.load(from_rows, mine[:, None] & held[None, :], other=0.0)
            b = tl.load(from_weight, (m < M)[None, :] & held[:, None], other=0.0)
        scale = tl.load(row_scale + r * BLOCKS_K + block, mine, other=0.0) * tl.load(from_scale + block)
        total += tl.dot(a, b) * scale[:, None]
        from_rows += 128
        from_weight += 128
    tl.store(out + r[:, None] * M + m[None, :], total.to(out.dtype.element_ty), mine[:, None] & (m < M)[None, :])
