"""E4M3 scales and casts inside kernels, to the bit as in `ling.ops.fp8` (power-of-two scales, saturating)."""

import triton
import triton.language as tl

_INFINITY = tl.constexpr(0x7F800000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_LARGEST = tl.constexpr(3.38953139e38)  # bfloat16's; float32's is below the same power of two


@triton.jit
def magnitude(x):
    """The bits of |x| of float32, which order as the values do, with NaN above all: a maximum of them keeps NaN."""
    return x.to(tl.int32, bitcast=True) & _MAGNITUDE


@triton.jit
def encode_scale(amax):
    """448 / amax rounded down to a power of two, of the bits of amax; 1 where amax is 0, infinite or NaN."""
    usable = (amax > 0) & (amax < _INFINITY)
    divisor = tl.where(usable, amax.to(tl.float32, bitcast=True), 1.0)
    exact = tl.minimum(tl.div_rn(tl.full(divisor.shape, 448.0, tl.float32), divisor), _LARGEST)
    power = (exact.to(tl.int32, bitcast=True) & _INFINITY).to(tl.float32, bitcast=True)
    return tl.where(usable, power, 1.0)


@triton.jit
def decode_scale(encode):
    """What codes are multiplied by to give values: exact, also where it is subnormal."""
    return tl.div_rn(tl.full(encode.shape, 1.0, tl.float32), encode)


@triton.jit
def saturate(x):
    """Clamp to +-448, NaN stays; then round."""
    return tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)


@triton.jit
def quantize_tiles(x, ROWS: tl.constexpr, TILES: tl.constexpr):
    """(ROWS, TILES * 128) float32 -> codes of the same shape, decoding scales (ROWS, TILES)."""
    tiles = tl.reshape(x, (ROWS, TILES, 128))
    encode = encode_scale(tl.max(magnitude(tiles), 2))
    codes = saturate(tiles * tl.expand_dims(encode, 2))
    return tl.reshape(codes, (ROWS, TILES * 128)), decode_scale(encode)
