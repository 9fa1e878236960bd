"""Noise that is a function, and rounding by it: right on average, exact where nothing is to be rounded."""

import pytest
import torch

from ling.ops.fp8 import E4M3
from ling.ops.noise import LANES, lane, noise_key, random_bits
from ling.ops.rounding import NEAREST, e4m3_neighbours, round_squares_to_e4m3, round_to_bfloat16, round_to_e4m3

EVERY_NOISE = torch.arange(0x10000, dtype=torch.int32)


def test_noise_is_a_function_of_key_and_position() -> None:
    whole = random_bits(noise_key(1, 2, "a"), 0, 1000)
    assert torch.equal(whole[300:500], random_bits(noise_key(1, 2, "a"), 300, 200))
    others = [noise_key(2, 2, "a"), noise_key(1, 3, "a"), noise_key(1, 2, "b")]
    assert all(not torch.equal(whole, random_bits(key, 0, 1000)) for key in others)
    assert random_bits(0, 0, 1).item() == 0xE220A8397B1DCDAF - (1 << 64)  # splitmix64's first number from seed 0


@pytest.mark.parametrize("index", range(LANES))
def test_every_lane_is_uniform_and_independent_of_the_others(index: int) -> None:
    bits = random_bits(noise_key(0, 0, "w"), 0, 1 << 18)
    values = lane(bits, index)
    counts = torch.bincount(values >> 8, minlength=256).double()
    chi2 = float(((counts - 1024) ** 2 / 1024).sum())
    assert 170 < chi2 < 350, chi2  # 255 degrees of freedom: 3 sigma is 68
    rest = torch.stack([lane(bits, i) for i in range(LANES)]).double()
    assert float((torch.corrcoef(rest) - torch.eye(LANES)).abs().max()) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([values[1:], values[:-1]]).double())[0, 1])) < 0.01


@pytest.mark.parametrize("value", [1.0, -1.001, 3.14159, 1e-30, -7e30, 1.00390625 + 2**-12])
def test_rounding_to_bfloat16_is_unbiased_to_the_last_bit(value: float) -> None:
    """Over every noise there is, the mean is the value itself."""
    x = torch.tensor([value])
    rounded = round_to_bfloat16(x.expand(0x10000).contiguous(), EVERY_NOISE)
    assert len(rounded.unique()) <= 2
    assert rounded.double().mean().item() == pytest.approx(x.double().item(), rel=1e-12)


def test_what_bfloat16_holds_stays_and_so_does_what_is_not_finite() -> None:
    x = torch.randn(0x10000).bfloat16().float()
    assert torch.equal(round_to_bfloat16(x, EVERY_NOISE), x.bfloat16())
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    odd = torch.cat([odd, torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)])
    for noise in (0, 0xFFFF):
        assert torch.equal(round_to_bfloat16(odd, noise).float().nan_to_num(7.0), odd.nan_to_num(7.0))


def test_the_middle_of_the_noise_rounds_to_nearest() -> None:
    x = torch.randn(5000) * 100
    half = x.view(torch.int32) & 0xFFFF == 0x8000  # away from zero here, to the even one there
    expected = torch.where(half, (x.view(torch.int32) + 0x8000).view(torch.float32), x).bfloat16()
    assert torch.equal(round_to_bfloat16(x, NEAREST), expected)
    between = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8])
    assert round_to_bfloat16(between, NEAREST).tolist() == [1 + 2**-7, 1 + 2**-6, -1 - 2**-7]
    assert torch.equal(round_to_e4m3(x.clamp(-448, 448), NEAREST).float(), x.clamp(-448, 448).to(E4M3).float())


@pytest.mark.parametrize("value", [0.0, 0.3, -1.7, 447.9, 448.0, -0.0131, 2.0**-9, 2.0**-11, -3.3 * 2.0**-9, 2.0**-6])
def test_rounding_to_e4m3_is_unbiased(value: float) -> None:
    rounded = round_to_e4m3(torch.full((0x10000,), value), EVERY_NOISE).float()
    step = float(torch.tensor(abs(value)).clamp_min(2.0**-6).log2().floor().exp2()) / 8
    assert len(rounded.unique()) <= 2
    assert rounded.double().mean().item() == pytest.approx(value, abs=step * 2**-15)


@pytest.mark.parametrize("root", [0.3, 1.7, 447.9, 448.0, 2.0**-6, 3.3 * 2.0**-9, 2.0**-9])
def test_roots_are_rounded_so_that_their_squares_are_unbiased(root: float) -> None:
    squares = torch.full((0x10000,), root).square()
    found = round_squares_to_e4m3(squares, EVERY_NOISE).double().square().mean().item()
    assert found == pytest.approx(squares[0].item(), rel=1e-4)


def test_a_square_that_is_not_zero_never_becomes_zero_and_a_zero_stays() -> None:
    squares = torch.tensor([0.0, 1e-38, 2.0**-30, 2.0**-19])
    for noise in (0, NEAREST, 0xFFFF):
        found = round_squares_to_e4m3(squares, noise).float()
        assert found[0] == 0
        assert bool((found[1:] == 2.0**-9).all())


def test_neighbours_are_codes_next_to_each_other() -> None:
    codes = torch.arange(127, dtype=torch.uint8).view(E4M3).float()
    lower, upper, share = e4m3_neighbours(codes[:-1])
    assert torch.equal(lower, codes[:-1])
    assert torch.equal(upper, codes[1:])
    assert not share.any()
    middle = (codes[1:] + codes[:-1]) / 2
    lower, upper, share = e4m3_neighbours(middle)
    assert torch.equal(lower, codes[:-1])
    assert torch.equal(upper, codes[1:])
    assert bool((share == 0.5).all())
