"""Weight gradients of one matrix or of each expert's, from rows kept in FP8."""

import triton
import triton.language as tl

# Grid: BLOCK_M x BLOCK_K tiles of a gradient (at most 128 x 128, so that a row's codes have one scale) by experts. A
# program goes along its expert's rows and adds up in float32. Any number of rows and experts.


@triton.jit
def _tile(M: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    TILES_K: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    first_m = tl.program_id(0) // TILES_K * BLOCK_M
    first_k = tl.program_id(0) % TILES_K * BLOCK_K
    return first_m, first_k, first_m + tl.arange(0, BLOCK_M), first_k + tl.arange(0, BLOCK_K)


@triton.jit
def _group(offsets, S):
    """The rows of this program's expert, half open; all of them where there is one matrix."""
    expert = tl.program_id(1)
    if offsets is None:
        return 0, S
    else:
        return tl.load(offsets + expert - 1, expert > 0, other=0), tl.load(offsets + expert)


@triton.jit
def _store(out, total, m, k, M: tl.constexpr, K: tl.constexpr):
    to = out + tl.program_id(1).to(tl.int64) * (M * K) + m[:, None] * K + k[None, :]
    tl.store(to, total.to(out.dtype.element_ty), (m < M)[:, None] & (k < K)[None, :])


@triton.jit
def _bfloat16(x, scale, r, columns, first, mine, WIDTH: tl.constexpr):
    """Values of rows r as bfloat16: codes times the scale of their tile, in which all of the columns are."""
    held = mine[:, None] & (columns < WIDTH)[None, :]
    values = tl.load(x + r[:, None] * WIDTH + columns[None, :], held, other=0.0)
    if scale is not None:
        TILES: tl.constexpr = (WIDTH + 127) // 128
        of_row = tl.load(scale + r * TILES + first // 128, mine, other=0.0)
        values = values.to(tl.float32) * of_row[:, None]
    return values.to(tl.bfloat16)


@triton.jit
def weight_grad(
    gradients, gradient_scale, rows, row_scale, offsets, out, S,
    M: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """gradients (S, M), rows (S, K), codes with scales of 1x128 tiles or values without -> out (E, M, K).

    Operands are rounded to bfloat16 in registers, where their products are exact.
    """
    first_m, first_k, m, k = _tile(M, K, BLOCK_M, BLOCK_K)
    begin, end = _group(offsets, S)
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for first in range(begin, end, BLOCK_R):
        r = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
        a = _bfloat16(gradients, gradient_scale, r, m, first_m, r < end, M)
        b = _bfloat16(rows, row_scale, r, k, first_k, r < end, K)
        total = tl.dot(tl.trans(a), b, total)
    _store(out, total, m, k, M, K)


@triton.jit
def columns(
    gradients, gradient_scale, rows, row_scale, offsets, out, S,
    M: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """gradients (M, S), rows (K, S), codes in tiles of 128 rows of one expert -> out (E, M, K).

    Groups begin at multiples of 128. The tensor core sums one tile, float32 all tiles.
    """
    _, _, m, k = _tile(M, K, BLOCK_M, BLOCK_K)
    begin, end = _group(offsets, S)
    if offsets is not None:
        begin, end = tl.multiple_of(begin, 128), tl.multiple_of(end, 128)
    num_tiles = (S + 127) // 128
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for first in range(begin, end, 128):
        r = first + tl.arange(0, 128)
        to_m, to_k = m.to(tl.int64)[:, None] * S + r[None, :], k.to(tl.int64)[None, :] * S + r[:, None]
        a = tl.load(gradients + to_m, (m < M)[:, None] & (r < end)[None, :], other=0.0)
        b = tl.load(rows + to_k, (k < K)[None, :] & (r < end)[:, None], other=0.0)
        scale_m = tl.load(gradient_scale + m.to(tl.int64) * num_tiles + first // 128, m < M, other=0.0)
        scale_k = tl.load(row_scale + k.to(tl.int64) * num_tiles + first // 128, k < K, other=0.0)
        total += tl.dot(a, b) * scale_m[:, None] * scale_k[None, :]
    _store(out, total, m, k, M, K)
