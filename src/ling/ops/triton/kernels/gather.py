"""A gradient added to a moment, and its square to another, in float32, bfloat16 or E4M3 codes: one pass over memory.

Reading, rounding and noise are those of the update, `ling.ops.triton.kernels.adamw`.
"""

import triton
import triton.language as tl

from ling.ops.triton.kernels.adamw import _random_bits, _read, _write

# Grid: one program per ROWS blocks of 256 neighbours, which share a scale. Arithmetic in float32. Any number of
# elements below 2^39.


@triton.jit(do_not_specialize=["key", "offset"])
def gather(
    gradient, mean, mean_scale, square, square_scale, n, key, offset,
    MEAN_SHARE: tl.constexpr, SQUARE_SHARE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """square None: there is one moment; offset: elements of the parameter before those at hand."""
    blocks = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = blocks[:, None] * 256 + tl.arange(0, 256)[None, :]
    live = at < n
    held = blocks * 256 < n
    g = tl.load(gradient + at, live, other=0.0).to(tl.float32)
    bits = _random_bits(at + offset, key)
    m = _read(mean, mean_scale, at, live, blocks, held, False) + MEAN_SHARE * g
    _write(mean, mean_scale, m, bits, at, live, blocks, held, False)
    if square is not None:
        v = _read(square, square_scale, at, live, blocks, held, True) + SQUARE_SHARE * g * g
        _write(square, square_scale, v, bits, at, live, blocks, held, True)
