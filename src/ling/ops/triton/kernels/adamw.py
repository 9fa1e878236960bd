"""One AdamW update of a weight and of moments in float32, bfloat16 or E4M3 codes, in one pass over memory.

Everything is read, decoded, updated in float32, rounded with the noise of `ling.ops.noise`, and written back: nothing
is in float32 anywhere but in registers. Roundings and noise are to the bit those of `ling.ops.rounding`.
"""

import triton
import triton.language as tl

# Grid: one program per ROWS blocks of 256 neighbours, which share a scale. Arithmetic in float32, bias corrections in
# float64. Any number of elements below 2^39.

_FINITE = tl.constexpr(0x7F800000)
_SMALLEST_NORMAL = tl.constexpr(2.0**-6)


@triton.jit
def _random_bits(positions, key):
    """64 bits for each position (splitmix64's finaliser): positions int64, key int64."""
    z = positions.to(tl.uint64) ^ key.to(tl.uint64)
    z += 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _lane(bits, LANE: tl.constexpr):
    return ((bits >> (16 * LANE)) & 0xFFFF).to(tl.int32)


@triton.jit
def _to_bfloat16(x, noise):
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + noise) & -0x10000).to(tl.float32, bitcast=True)
    return tl.where((bits & _FINITE) == _FINITE, x, rounded).to(tl.bfloat16)


@triton.jit
def _neighbours(x):
    """The values of E4M3 at or below x (not negative) and above, and how far x is from the first, in steps."""
    moved = tl.where(x < _SMALLEST_NORMAL, _SMALLEST_NORMAL, 0.0)
    bits = (x + moved).to(tl.int32, bitcast=True)
    low = bits & -(1 << 20)
    lower = low.to(tl.float32, bitcast=True) - moved
    upper = (low + (1 << 20)).to(tl.float32, bitcast=True) - moved
    return lower, upper, (bits - low).to(tl.float32) / (1 << 20)


@triton.jit
def _scale_of(root, LEAST: tl.constexpr):
    """The smallest power of two that is at least root / 448, and at least LEAST."""
    wanted = tl.maximum(tl.div_rn(root, tl.full(root.shape, 448.0, tl.float32)), LEAST)
    bits = wanted.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFFF) & _FINITE).to(tl.float32, bitcast=True)


@triton.jit
def _read(moment, scale, at, live, blocks, held, SQUARE: tl.constexpr):
    value = tl.load(moment + at, live, other=0.0).to(tl.float32)
    if scale is not None:
        value = value * tl.load(scale + blocks, held, other=1.0)[:, None]
        if SQUARE:
            value = value * value
    return value


@triton.jit
def _write(moment, scale, value, bits, at, live, blocks, held, SQUARE: tl.constexpr):
    LANE: tl.constexpr = 2 if SQUARE else 1
    if scale is None:
        if moment.dtype.element_ty == tl.bfloat16:
            tl.store(moment + at, _to_bfloat16(value, _lane(bits, LANE)), live)
        else:
            tl.store(moment + at, value, live)
    else:
        noise = _lane(bits, LANE).to(tl.float32)
        amax = tl.max(tl.abs(value), 1)
        if SQUARE:
            step = _scale_of(tl.sqrt_rn(amax), 2.0**-54)
            squares = value / (step * step)[:, None]
            lower, upper, _ = _neighbours(tl.minimum(tl.sqrt_rn(squares), 448.0))
            low, high = lower * lower, upper * upper
            share = tl.div_rn(squares - low, high - low)
            up = (share * 65536.0 + noise >= 65536.0) | ((lower == 0) & (squares > 0))
            rounded = tl.where(up, upper, lower)
        else:
            step = _scale_of(amax, 2.0**-110)
            scaled = value / step[:, None]
            lower, upper, share = _neighbours(tl.abs(scaled))
            rounded = tl.where(share * 65536.0 + noise >= 65536.0, upper, lower)
            rounded = tl.where(scaled < 0, -rounded, rounded)
        tl.store(moment + at, tl.clamp(rounded, -448.0, 448.0).to(tl.float8e4nv), live)
        tl.store(scale + blocks, step, held)


@triton.jit(do_not_specialize=["key", "offset"])
def adamw(
    weight, gradient, mean, mean_scale, square, square_scale, step, n, key, offset, lr, decay, eps,
    BETA1: tl.constexpr, BETA2: tl.constexpr, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr,
    STOCHASTIC: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """step () float32: updates done before this one; offset: elements of the parameter before those at hand."""
    blocks = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = blocks[:, None] * 256 + tl.arange(0, 256)[None, :]
    live = at < n
    held = blocks * 256 < n
    w = tl.load(weight + at, live, other=0.0).to(tl.float32)
    g = tl.load(gradient + at, live, other=0.0).to(tl.float32)
    m = BETA1 * _read(mean, mean_scale, at, live, blocks, held, False) + (1 - BETA1) * g
    v = BETA2 * _read(square, square_scale, at, live, blocks, held, True) + (1 - BETA2) * g * g
    count = tl.load(step).to(tl.float64) + 1
    correction1 = (1 - tl.exp(count * LOG_BETA1)).to(tl.float32)
    correction2 = tl.sqrt((1 - tl.exp(count * LOG_BETA2)).to(tl.float32))
    w -= lr * decay * w
    w -= (lr / correction1) * m / (tl.sqrt_rn(v) / correction2 + eps)
    bits = _random_bits(at + offset, key)
    if weight.dtype.element_ty == tl.float32:
        tl.store(weight + at, w, live)
    else:
        noise = 0x8000
        if STOCHASTIC:
            noise = _lane(bits, 0)
        tl.store(weight + at, _to_bfloat16(w, noise), live)
    _write(mean, mean_scale, m, bits, at, live, blocks, held, False)
    _write(square, square_scale, v, bits, at, live, blocks, held, True)
