"""Weights of 8 and 4 bits: what is kept, what is lost, and that the C twin packs the same bits."""

import pytest
import torch
from torch import Tensor

from ling.errors import ConfigError
from ling.ops.backend import use_backend
from ling.ops.linear import grouped_linear, linear
from ling.ops.packed import (
    PACKED_FORMATS,
    PackedFormat,
    check_format,
    pack_rows,
    quantize,
    quantize_int4,
    quantize_int8,
)

SHAPES = [(1, 1), (16, 32), (20, 70), (33, 96), (3, 17, 40)]


def weight(*shape: int, seed: int = 0) -> Tensor:
    w = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    w[..., 0, :] = 0.0  # a row without a scale
    return w


def test_int8_loses_less_than_the_plain_scale_would() -> None:
    w = weight(64, 256)
    error = (quantize_int8(w).dequantize(torch.float32) - w).norm() / w.norm()
    columns = w.unflatten(-1, (-1, 32))
    step = (columns.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-12)
    plain = ((columns / step).round() * step).flatten(1)
    assert error < 0.92 * (plain - w).norm() / w.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_off_by_half_a_step_at_most(shape: tuple[int, ...]) -> None:
    w = weight(*shape)
    packed = quantize_int8(w)
    got = packed.dequantize(torch.float32)
    assert got.shape == packed.shape == w.shape
    columns = torch.nn.functional.pad(w, (0, -shape[-1] % 32)).unflatten(-1, (-1, 32))
    step = (columns.abs().amax(-1) / 120).repeat_interleave(32, -1)[..., : shape[-1]]
    assert bool(((got - w).abs() <= 0.51 * step + 1e-7).all())  # the float16 scale moves values a little, too


def test_int4_loses_less_than_the_plain_scale_would() -> None:
    w = weight(64, 256)
    error = (quantize_int4(w).dequantize(torch.float32) - w).norm() / w.norm()
    columns = w.unflatten(-1, (-1, 32))
    step = columns.abs().amax(-1, keepdim=True) / 7
    plain = ((columns / step.clamp_min(1e-12)).round() * step).flatten(1)
    assert error < 0.09
    assert error < 0.9 * (plain - w).norm() / w.norm()


def test_a_weight_takes_its_bits_and_half_a_bit_of_scale() -> None:
    assert quantize_int8(weight(64, 128)).nbytes * 8 == 64 * 128 * 8.5
    assert quantize_int4(weight(64, 128)).nbytes * 8 == 64 * 128 * 4.5


@pytest.mark.parametrize("format", PACKED_FORMATS)
def test_stacked_matrices_begin_with_tiles_of_their_own(format: PackedFormat) -> None:
    w = weight(3, 40, 64)
    packed = quantize(w, format, (20, 20))
    apart = torch.cat([quantize(part, format).dequantize(torch.float32) for part in w.split(20, 1)], 1)
    assert packed.dequantize(torch.float32).equal(apart)
    assert packed.expert(1).dequantize(torch.float32).equal(apart[1])


@pytest.mark.parametrize("format", PACKED_FORMATS)
def test_products_are_those_of_the_values(format: PackedFormat) -> None:
    w, x = weight(4, 24, 40), torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    packed = quantize(w, format)
    values = packed.dequantize(torch.float32)
    with use_backend("reference"):
        assert linear(x, packed.expert(2)).equal(linear(x, values[2]))
        offsets = torch.tensor([3, 3, 7, 7], dtype=torch.int32)
        assert grouped_linear(x, packed, offsets).equal(grouped_linear(x, values, offsets))


@pytest.mark.parametrize("format", PACKED_FORMATS)
def test_no_scale_beyond_float16_is_taken(format: PackedFormat) -> None:
    with pytest.raises(ConfigError, match="does not fit float16"):
        quantize(torch.full((2, 32), 1e9), format)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="int8 or int4, not as int5"):
        check_format("int5")


@pytest.mark.parametrize("format", PACKED_FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_c_twin_packs_the_same_bits(shape: tuple[int, ...], format: PackedFormat) -> None:
    w = weight(*shape, seed=3)
    with use_backend("cpu"):
        codes, scales = pack_rows(w, format)
    with use_backend("reference"):
        wanted_codes, wanted_scales = pack_rows(w, format)
    assert codes.equal(wanted_codes)
    assert scales.equal(wanted_scales)
