"""FP8 scales and casts inside kernels, to the bit as in `ling.ops.fp8`: saturating, zero-safe, NaN stays NaN."""

import triton
import triton.language as tl

_INFINITY = tl.constexpr(0x7F800000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_LARGEST_BFLOAT16 = tl.constexpr(3.3895313892515355e38)
_LARGEST_FLOAT32 = tl.constexpr(3.4028234663852886e38)


@triton.jit
def magnitude(x):
    """The bits of |x| of float32, which order as the values do, with NaN above all: a maximum of them keeps NaN."""
    return x.to(tl.int32, bitcast=True) & _MAGNITUDE


@triton.jit
def encode_scale(amax, KIND: tl.constexpr, SOURCE: tl.constexpr, POWER_OF_TWO: tl.constexpr):
    """Largest code / amax, of the bits of amax, rounded down to a power of two if asked.

    1 where amax is 0, infinite or NaN; at most the largest value of SOURCE, whose amax it is.
    """
    usable = (amax > 0) & (amax < _INFINITY)
    divisor = tl.where(usable, amax.to(tl.float32, bitcast=True), 1.0)
    largest = tl.full(divisor.shape, 448.0 if tl.float8e4nv == KIND else 57344.0, tl.float32)
    inverse = tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), divisor)  # torch divides a number in two steps, too
    encode = tl.minimum(inverse * largest, _LARGEST_BFLOAT16 if tl.bfloat16 == SOURCE else _LARGEST_FLOAT32)
    if POWER_OF_TWO:
        encode = (encode.to(tl.int32, bitcast=True) & _INFINITY).to(tl.float32, bitcast=True)
    return tl.where(usable, encode, 1.0)


@triton.jit
def decode_scale(encode):
    """What codes are multiplied by to give values, subnormal where it must be."""
    return tl.div_rn(tl.full(encode.shape, 1.0, tl.float32), encode)


@triton.jit
def saturate(x, KIND: tl.constexpr):
    """Clamp to what codes of this kind hold, NaN stays; then round."""
    if tl.float8e4nv == KIND:
        return tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(KIND)
    else:
        return tl.clamp(x, -57344.0, 57344.0, propagate_nan=tl.PropagateNan.ALL).to(KIND)


@triton.jit
def quantize_tiles(
    x, ROWS: tl.constexpr, TILES: tl.constexpr,
    KIND: tl.constexpr = tl.float8e4nv, SOURCE: tl.constexpr = tl.bfloat16, POWER_OF_TWO: tl.constexpr = True,
):  # fmt: skip
    """(ROWS, TILES * 128) float32, values of SOURCE -> codes of the same shape, decoding scales (ROWS, TILES)."""
    tiles = tl.reshape(x, (ROWS, TILES, 128))
    encode = encode_scale(tl.max(magnitude(tiles), 2), KIND, SOURCE, POWER_OF_TWO)
    codes = saturate(tiles * tl.expand_dims(encode, 2), KIND)
    return tl.reshape(codes, (ROWS, TILES * 128)), decode_scale(encode)
