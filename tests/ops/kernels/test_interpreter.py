"""The interpreter's numbers, which every other test here relies on: those of torch, bit for bit."""

import torch
import triton
import triton.language as tl
from tests.ops.kernels.comparing import draw, same_bytes


@triton.jit
def cast(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


@triton.jit
def multiply_and_add(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.store(y + at, value * value + value)


@triton.jit
def square(x, y, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    value = tl.load(x + at)
    tl.store(y + at, tl.dot(value, value))


FORMATS = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def test_casts_round_to_nearest_carry_and_saturate() -> None:
    x = draw(0, 4096) * torch.logspace(-12, 6, 4096)
    x[:4] = torch.tensor([127.7, -127.7, 1e9, 0.0])  # a carry that the interpreter loses by itself: 64
    for dtype in FORMATS:
        codes = torch.empty(4096, dtype=dtype)
        cast[(1,)](x, codes, N=4096)
        limit = torch.finfo(dtype).max
        same_bytes(codes, x.clamp(-limit, limit).to(dtype))
        back = torch.empty(4096)
        cast[(1,)](codes, back, N=4096)
        same_bytes(back, codes.float())


def test_bfloat16_is_computed_with_values_and_not_with_bits() -> None:
    x = draw(0, 256, dtype=torch.bfloat16)
    y = torch.empty_like(x)
    multiply_and_add[(1,)](x, y, N=256)
    same_bytes(y, x * x + x)


def test_products_of_low_precision_are_exact_in_float32() -> None:
    for dtype in FORMATS:
        x, y = draw(0, 16, 16).to(dtype), torch.empty(16, 16)
        square[(1,)](x, y, N=16)
        torch.testing.assert_close(y, x.float() @ x.float(), rtol=1e-6, atol=1e-6)
