"""RMSNorm, with 1x128 quantisation of what comes out, and its backward pass."""

import triton
import triton.language as tl

from ling.ops.triton.kernels.fp8 import quantize_tiles

# Grid: one program per ROWS rows forward; as many programs as dweight has partial sums backward, each over every
# so-many-th group of ROWS rows. Sums in float32. Largest row: 16384 (all of it is in registers).


@triton.jit
def rms_norm_forward(
    x, weight, y, inv_rms, codes, scale, N, eps,
    H: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    live = (rows < N)[:, None] & (columns < H)[None, :]
    at = rows[:, None] * H + columns[None, :]
    x32 = tl.load(x + at, live, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x32 * x32, 1) / H + eps)
    normed = (x32 * inverse[:, None]).to(x.dtype.element_ty).to(tl.float32)  # the first of two roundings
    weight32 = tl.load(weight + columns, columns < H, other=0.0).to(tl.float32)
    out = (normed * weight32[None, :]).to(y.dtype.element_ty)
    tl.store(y + at, out, live)
    tl.store(inv_rms + rows, inverse, rows < N)
    if QUANTIZE:
        TILES: tl.constexpr = BLOCK // 128
        out_codes, out_scale = quantize_tiles(out.to(tl.float32), ROWS, TILES)
        tl.store(codes + at, out_codes, live)
        NUM_TILES: tl.constexpr = (H + 127) // 128
        tiles = tl.arange(0, TILES)
        keep = (rows < N)[:, None] & (tiles < NUM_TILES)[None, :]
        tl.store(scale + rows[:, None] * NUM_TILES + tiles[None, :], out_scale, keep)


@triton.jit
def rms_norm_backward(
    dy, x, weight, inv_rms, dx, dweight, N,
    H: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = inv_rms * (g - n * mean(g * n)) with n = x * inv_rms and g = dy * weight; dweight (programs, H) float32."""
    columns = tl.arange(0, BLOCK)
    weight32 = tl.load(weight + columns, columns < H, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(tl.program_id(0) * ROWS, N, tl.num_programs(0) * ROWS):
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)
        live = (rows < N)[:, None] & (columns < H)[None, :]
        at = rows[:, None] * H + columns[None, :]
        inverse = tl.load(inv_rms + rows, rows < N, other=0.0)[:, None]
        normed = tl.load(x + at, live, other=0.0).to(tl.float32) * inverse
        dy32 = tl.load(dy + at, live, other=0.0).to(tl.float32)
        rounded = normed.to(x.dtype.element_ty).to(tl.float32)  # what the weight was multiplied with
        total += tl.sum(dy32 * rounded, 0)
        g = dy32 * weight32[None, :]
        out = inverse * (g - normed * (tl.sum(g * normed, 1) / H)[:, None])
        tl.store(dx + at, out.to(dx.dtype.element_ty), live)
    tl.store(dweight + tl.program_id(0) * H + columns, total, columns < H)
