"""Moments in one byte: what comes back, what is right on average, and the published map."""

import pytest
import torch

from ling.ops.noise import lane, noise_key, random_bits
from ling.ops.rounding import NEAREST
from ling.optim.dynamic_map import dynamic_map
from ling.optim.moments import BLOCK_SIZE, format_of, moment_format, zeros

FORMATS = ["bfloat16", "fp8", "dynamic8"]
RELATIVE = {"bfloat16": 2**-8, "fp8": 2**-4, "dynamic8": 0.05}


def noise(count: int, step: int = 0) -> torch.Tensor:
    return lane(random_bits(noise_key(0, step, "w"), 0, count), 0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("count", [1, 255, 256, 1000])
def test_means_come_back_within_half_a_step(name: str, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 1e-4
    format = moment_format(name, "mean")
    codes, scale = format.encode(values, NEAREST)
    assert codes.dtype == format.dtype
    assert codes.shape == (count,)
    assert (scale is not None) == format.has_scale
    back = format.decode(codes, scale)
    largest = values.abs().max()
    assert bool(((back - values).abs() <= values.abs() * RELATIVE[name] + largest * 2e-3).all())
    assert torch.equal(format_of(codes.dtype, "mean").decode(codes, scale), back)


@pytest.mark.parametrize("name", FORMATS)
def test_squares_come_back_over_ten_orders_of_magnitude(name: str) -> None:
    values = 10.0 ** torch.linspace(-10, 0, 256) * 1e-12
    format = moment_format(name, "square")
    back = format.decode(*format.encode(values, NEAREST))
    kept = values > {"bfloat16": 0, "fp8": 1e-20, "dynamic8": 1e-16}[name]
    assert ((back / values)[kept] - 1).abs().max() < {"bfloat16": 0.004, "fp8": 0.15, "dynamic8": 0.35}[name]
    assert bool((back > 0).all())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["mean", "square"])
def test_zeros_stay_zeros_and_the_first_state_is_zero(name: str, kind: str) -> None:
    format = moment_format(name, kind)
    for amount in (0, NEAREST, 0xFFFF):
        assert not format.decode(*format.encode(torch.zeros(300), amount)).any()
    state = zeros("exp_avg", torch.ones(20, 30), format)
    assert state["exp_avg"].shape == (20, 30)
    scale = state["exp_avg_scale"].view(-1) if format.has_scale else None
    assert not format.decode(state["exp_avg"].view(-1), scale).any()
    half = torch.zeros(300)
    half[::2] = 3e-5
    assert not format.decode(*format.encode(half, 0xFFFF))[1::2].any()


@pytest.mark.parametrize("kind", ["mean", "square"])
@pytest.mark.parametrize("name", ["bfloat16", "fp8"])
def test_what_is_kept_is_right_on_average(name: str, kind: str) -> None:
    values = torch.rand(256, generator=torch.Generator().manual_seed(1)).add_(0.05).mul_(1e-6)
    format = moment_format(name, kind)
    repeats = 1000
    mean = torch.zeros(256, dtype=torch.float64)
    for key in range(repeats):
        mean += format.decode(*format.encode(values, noise(256, key))).double() / repeats
    spread = RELATIVE[name] * (2 if kind == "square" else 1) * values  # at most, of one rounding
    assert bool(((mean - values).abs() < 5 * spread / repeats**0.5).all())


def test_a_decaying_square_decays_and_would_not_if_it_were_rounded_to_nearest() -> None:
    """beta2 = 0.95 without gradients: after 60 steps 0.046 of it is left."""
    format = moment_format("fp8", "square")
    left = {}
    for name in ("stochastic", "nearest"):
        values = torch.full((BLOCK_SIZE,), 1e-8)
        values[0] = 1e-6  # keeps the block's scale
        for step in range(60):
            values[1:] *= 0.95
            values = format.decode(*format.encode(values, NEAREST if name == "nearest" else noise(BLOCK_SIZE, step)))
            values[0] = 1e-6
        left[name] = float(values[1:].mean() / 1e-8)
    assert left["stochastic"] == pytest.approx(0.95**60, rel=0.2)
    assert left["nearest"] > 0.8


def test_codes_saved_and_read_again_are_the_same_values() -> None:
    for kind in ("mean", "square"):
        format = moment_format("fp8", kind)
        values = torch.randn(512).mul_(1e-3)
        once = format.decode(*format.encode(values.square() if kind == "square" else values, NEAREST))
        assert torch.equal(format.decode(*format.encode(once, NEAREST)), once)


@pytest.mark.parametrize(("signed", "smallest"), [(True, 5.5e-7), (False, 3.25e-7)])
def test_the_published_map(signed: bool, smallest: float) -> None:
    """spec training.md 6.1."""
    values = dynamic_map(signed=signed)
    assert len(values.unique()) == 256
    assert bool((values[1:] > values[:-1]).all())
    assert values.max() == 1
    assert 0 in values
    assert values.abs()[values != 0].min().item() == pytest.approx(smallest, rel=1e-6)
    assert (values < 0).any() == signed
