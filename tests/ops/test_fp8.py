"""Block quantisation: bit for bit against the golden cases, and the properties both quantisers promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.golden_cases import GOLDEN
from torch import Tensor

from ling.ops.fp8 import (
    E4M3_MAX,
    Fp8BlockWeight,
    dequantize_e4m3_block,
    dequantize_e4m3_tile,
    has_nan,
    quantize_e4m3_block,
    quantize_e4m3_tile,
    quantize_e4m3_training_block,
    round_up_to_power_of_two,
)

# Informational in the golden README: non-finite input, and a scale one ulp above a power of two, which upstream's
# float32 logarithm rounds down to it (ours rounds up exactly).
INFORMATIONAL = {("inf_nan", "float"), ("inf_nan", "ue8m0"), ("power_of_two_ulp", "ue8m0")}
CASES = [(f.stem, mode) for f in sorted((GOLDEN / "fp8").glob("*.safetensors")) for mode in ("float", "ue8m0")]


def same_bytes(got: Tensor, expected: Tensor) -> bool:
    return got.dtype == expected.dtype and torch.equal(got.view(torch.uint8), expected.view(torch.uint8))


def test_every_code_has_the_value_that_torch_gives_it() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    finite = codes[~codes.float().isnan()]
    for part in (finite[None], codes[None], finite.view(2, 127).T, finite[None, :0]):
        grid = torch.ones(-(-part.shape[0] // 128), -(-part.shape[1] // 128))
        found = dequantize_e4m3_block(part, grid, torch.float32)
        assert torch.equal(found.view(torch.int32), part.float().view(torch.int32)), part.shape
    assert has_nan(codes)
    assert not has_nan(finite)


@pytest.mark.parametrize(("name", "mode"), [case for case in CASES if case not in INFORMATIONAL])
def test_export_quantiser_gives_the_golden_bytes(name: str, mode: str) -> None:
    data = load_file(GOLDEN / "fp8" / f"{name}.safetensors")
    codes, scale = quantize_e4m3_block(data["in.x"], power_of_two=mode == "ue8m0")
    assert same_bytes(codes, data[f"out.{mode}.q"])
    assert same_bytes(scale, data[f"out.{mode}.scale"])


def test_a_scale_just_above_a_power_of_two_is_rounded_up() -> None:
    data = load_file(GOLDEN / "fp8" / "power_of_two_ulp.safetensors")
    _, scale = quantize_e4m3_block(data["in.x"], power_of_two=True)
    _, exact = quantize_e4m3_block(data["in.x"], power_of_two=False)
    assert bool(((scale >= exact) & (scale < 2 * exact)).all())
    assert bool((torch.frexp(scale).mantissa == 0.5).all())


def test_the_worked_example_of_the_specification() -> None:
    """spec checkpoint.md 3."""
    block = torch.zeros(128, 128, dtype=torch.bfloat16)
    block[0, :4] = torch.tensor([1.0, -0.5, 0.3, 0.001])
    codes, scale = quantize_e4m3_block(block, power_of_two=False)
    assert scale.item() == pytest.approx(0.0022321429)
    assert codes[0, :4].float().tolist() == [448, -224, 128, 0.4375]
    codes, scale = quantize_e4m3_block(block, power_of_two=True)
    assert scale.item() == 2**-8
    assert codes[0, :4].float().tolist() == [256, -128, 80, 0.25]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300), columns=st.integers(1, 300), exponent=st.integers(-30, 30), seed=st.integers(0, 99),
    quantiser=st.sampled_from(["fp32", "pow2", "training", "tile"]), dtype=st.sampled_from(["float32", "bfloat16"]),
)  # fmt: skip
def test_values_come_back_within_one_sixteenth(rows, columns, exponent, seed, quantiser, dtype) -> None:
    """E4M3 has 3 mantissa bits: half a step is at most 2^-4 of a normal value; below, half a subnormal step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator).mul(2.0**exponent).to(getattr(torch, dtype))
    x[0, 0] = 0.0
    if quantiser == "tile":
        codes, scale = quantize_e4m3_tile(x)
        back, grid = (
            dequantize_e4m3_tile(codes, scale, torch.float32),
            scale.repeat_interleave(128, 1)[:, :columns],
        )
    else:
        power_of_two = quantiser == "pow2"
        codes, scale = (
            quantize_e4m3_training_block(x)
            if quantiser == "training"
            else quantize_e4m3_block(x, power_of_two=power_of_two)
        )
        back = dequantize_e4m3_block(codes, scale, torch.float32)
        grid = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    assert codes.shape == x.shape
    allowed = torch.maximum(x.float().abs() * 2**-4, grid * 2**-10) * (1 + 1e-6)
    assert bool(((back - x.float()).abs() <= allowed).all())
    assert back[0, 0] == 0


def test_training_scales_are_powers_of_two_and_use_the_range() -> None:
    """spec training.md 5: 448 / amax rounded down to a power of two, so amax lands in (224, 448]."""
    x = torch.randn(64, 256)
    codes, scale = quantize_e4m3_tile(x)
    assert bool((torch.frexp(scale).mantissa == 0.5).all())
    largest = codes.float().abs().view(64, 2, 128).amax(-1)
    assert bool(((largest >= 224) & (largest <= E4M3_MAX)).all())
    assert quantize_e4m3_tile(torch.ones(1, 128))[1].item() == 2**-8


def test_training_quantiser_survives_zeros_and_non_finite_tiles() -> None:
    x = torch.zeros(3, 128)
    x[1, 0], x[2, 0] = torch.inf, torch.nan
    codes, scale = quantize_e4m3_tile(x)
    assert scale.flatten().tolist() == [1.0, 1.0, 1.0]
    assert codes[0].float().abs().max() == 0
    assert codes[1, 0].float() == E4M3_MAX


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_rounding_up_to_a_power_of_two_is_exact(value: float) -> None:
    rounded = round_up_to_power_of_two(torch.tensor([value])).item()
    assert np.log2(rounded) == np.round(np.log2(rounded))
    assert value <= rounded < 2 * value


def test_stacked_matrices_keep_a_grid_each() -> None:
    """Gate and up of an expert are quantised apart: 160 rows are two blocks each, not three in all."""
    gate, up = torch.randn(160, 130), torch.randn(160, 130) * 100
    parts = [quantize_e4m3_block(w, power_of_two=False) for w in (gate, up)]
    stacked = Fp8BlockWeight(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), (160, 160))
    assert stacked.scale.shape == (4, 2)
    expected = torch.cat([dequantize_e4m3_block(*p, torch.float32) for p in parts])
    assert torch.equal(stacked.dequantize(torch.float32), expected)
