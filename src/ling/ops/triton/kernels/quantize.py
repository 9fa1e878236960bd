"""Quantisation to FP8 in 1x128 tiles and 128x128 blocks, and the transpose of blocks, which moves codes untouched."""

import triton
import triton.language as tl

from ling.ops.triton.kernels.fp8 import decode_scale, encode_scale, magnitude, quantize_tiles, saturate

# Grid: tiles: ROWS rows by TILES tiles per program; blocks: one 128x128 block per program, one matrix of a stack after
# the other. Maxima are exact; scales and products in float32. Any size: rows and columns that are not there are zeros.


@triton.jit
def quantize_tile(
    x, codes, scale, N,
    K: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    NUM_TILES: tl.constexpr = (K + 127) // 128
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * (TILES * 128) + tl.arange(0, TILES * 128)
    live = (rows < N)[:, None] & (columns < K)[None, :]
    at = rows[:, None] * K + columns[None, :]
    values = tl.load(x + at, live, other=0.0).to(tl.float32)
    out, decode = quantize_tiles(values, ROWS, TILES, codes.dtype.element_ty, x.dtype.element_ty, POWER_OF_TWO)
    tl.store(codes + at, out, live)
    tiles = tl.program_id(1) * TILES + tl.arange(0, TILES)
    keep = (rows < N)[:, None] & (tiles < NUM_TILES)[None, :]
    tl.store(scale + rows[:, None] * NUM_TILES + tiles[None, :], decode, keep)


@triton.jit
def _block_at(M: tl.constexpr, K: tl.constexpr):
    """This program's block: where its values are, which exist, where they are transposed, and where its scales are."""
    BLOCKS_M: tl.constexpr = (M + 127) // 128
    BLOCKS_K: tl.constexpr = (K + 127) // 128
    matrix = (tl.program_id(0) // BLOCKS_M).to(tl.int64)
    down, right = tl.program_id(0) % BLOCKS_M, tl.program_id(1)
    rows = down * 128 + tl.arange(0, 128)
    columns = right * 128 + tl.arange(0, 128)
    live = (rows < M)[:, None] & (columns < K)[None, :]
    at = matrix * (M * K) + rows[:, None] * K + columns[None, :]
    transposed = matrix * (M * K) + columns[:, None] * M + rows[None, :]
    of_scale = matrix * (BLOCKS_M * BLOCKS_K) + down * BLOCKS_K + right
    of_transposed_scale = matrix * (BLOCKS_M * BLOCKS_K) + right * BLOCKS_M + down
    return at, live, transposed, of_scale, of_transposed_scale


@triton.jit
def quantize_block(
    w, codes, scale, transposed_codes, transposed_scale,
    M: tl.constexpr, K: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    """w (E, M, K) -> codes, scales; with transposed_codes (E, K, M) not None the same transposed, from one reading."""
    at, live, transposed, of_scale, of_transposed_scale = _block_at(M, K)
    KIND: tl.constexpr = codes.dtype.element_ty
    values = tl.load(w + at, live, other=0.0).to(tl.float32)
    amax = tl.max(tl.max(magnitude(values), 1), 0)
    encode = encode_scale(tl.full((1,), amax, tl.int32), KIND, w.dtype.element_ty, POWER_OF_TWO)
    out = saturate(values * tl.expand_dims(encode, 1), KIND)
    tl.store(codes + at, out, live)
    one = tl.arange(0, 1)
    tl.store(scale + of_scale + one, decode_scale(encode))
    if transposed_codes is not None:
        tl.store(transposed_codes + transposed, tl.trans(out), tl.trans(live))
        tl.store(transposed_scale + of_transposed_scale + one, decode_scale(encode))


@triton.jit
def transpose_block(codes, scale, transposed_codes, transposed_scale, M: tl.constexpr, K: tl.constexpr):
    """Codes (E, M, K) as bytes -> (E, K, M), and their scales."""
    at, live, transposed, of_scale, of_transposed_scale = _block_at(M, K)
    tl.store(transposed_codes + transposed, tl.trans(tl.load(codes + at, live, other=0)), tl.trans(live))
    tl.store(transposed_scale + of_transposed_scale, tl.load(scale + of_scale))
