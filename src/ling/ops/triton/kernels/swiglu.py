"""SwiGLU of a fused gate-up projection, with a weight per row and 1x128 quantisation of what comes out; and back."""

import triton
import triton.language as tl

from ling.ops.triton.kernels.fp8 import quantize_tiles

# Grid: ROWS rows by BLOCK channels per program forward; ROWS rows per program backward, which goes along them because
# the gradient of a row's weight is a sum over all of it. Arithmetic in float32. Any size: rows are cut in blocks.


@triton.jit
def swiglu_forward(
    gate_up, mix, out, codes, scale, R,
    F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    """gate_up (R, 2F), mix (R,) or None -> (R, F), as values, as codes of the unrounded product, or both.

    Without mix the product is rounded twice, as the published model does.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = (rows < R)[:, None] & (columns < F)[None, :]
    from_gate = gate_up + rows[:, None] * (2 * F) + columns[None, :]
    gate = tl.load(from_gate, live, other=0.0).to(tl.float32)
    up = tl.load(from_gate + F, live, other=0.0).to(tl.float32)
    silu = gate * tl.sigmoid(gate)
    if mix is None:
        product = silu.to(gate_up.dtype.element_ty).to(tl.float32) * up
    else:
        product = silu * up * tl.load(mix + rows, rows < R, other=0.0)[:, None]
    at = rows[:, None] * F + columns[None, :]
    if out is not None:
        tl.store(out + at, product.to(out.dtype.element_ty), live)
    if codes is not None:
        TILES: tl.constexpr = BLOCK // 128
        NUM_TILES: tl.constexpr = (F + 127) // 128
        KIND: tl.constexpr = codes.dtype.element_ty
        some_codes, some_scale = quantize_tiles(product, ROWS, TILES, KIND, tl.float32, POWER_OF_TWO)
        tl.store(codes + at, some_codes, live)
        tiles = tl.program_id(1) * TILES + tl.arange(0, TILES)
        keep = (rows < R)[:, None] & (tiles < NUM_TILES)[None, :]
        tl.store(scale + rows[:, None] * NUM_TILES + tiles[None, :], some_scale, keep)


@triton.jit
def _store_gradient(
    value, out, codes, scale, rows, first, R, OFFSET: tl.constexpr,
    F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    """Store a block of dgate (OFFSET 0) or dup (OFFSET F) into rows of 2F channels, as values and perhaps as codes."""
    columns = first + tl.arange(0, BLOCK)
    live = (rows < R)[:, None] & (columns < F)[None, :]
    at = rows[:, None] * (2 * F) + OFFSET + columns[None, :]
    rounded = value.to(out.dtype.element_ty)
    tl.store(out + at, rounded, live)
    if codes is not None:  # F is a multiple of 128, or a tile would reach from gate to up
        TILES: tl.constexpr = BLOCK // 128
        KIND: tl.constexpr = codes.dtype.element_ty
        SOURCE: tl.constexpr = out.dtype.element_ty
        some_codes, some_scale = quantize_tiles(rounded.to(tl.float32), ROWS, TILES, KIND, SOURCE, POWER_OF_TWO)
        tl.store(codes + at, some_codes, live)
        tiles = first // 128 + tl.arange(0, TILES)
        keep = (rows < R)[:, None] & (tiles < F // 128)[None, :]
        tl.store(scale + rows[:, None] * (2 * F // 128) + OFFSET // 128 + tiles[None, :], some_scale, keep)


@triton.jit
def swiglu_backward(
    dproduct, gate_up, mix, dgate_up, codes, scale, dmix, R,
    F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    """dproduct (R, F) -> dgate_up (R, 2F) and, where there is a mix, dmix (R,) float32."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, F, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        live = (rows < R)[:, None] & (columns < F)[None, :]
        from_gate = gate_up + rows[:, None] * (2 * F) + columns[None, :]
        gate = tl.load(from_gate, live, other=0.0).to(tl.float32)
        up = tl.load(from_gate + F, live, other=0.0).to(tl.float32)
        d = tl.load(dproduct + rows[:, None] * F + columns[None, :], live, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        if mix is not None:
            total += tl.sum(d * silu * up, 1)
            d = d * tl.load(mix + rows, rows < R, other=0.0)[:, None]
        dgate = d * up * sigmoid * (1 + gate * (1 - sigmoid))
        _store_gradient(dgate, dgate_up, codes, scale, rows, first, R, 0, F, ROWS, BLOCK, POWER_OF_TWO)
        _store_gradient(d * silu, dgate_up, codes, scale, rows, first, R, F, F, ROWS, BLOCK, POWER_OF_TWO)
    if mix is not None:
        tl.store(dmix + rows, total, rows < R)
