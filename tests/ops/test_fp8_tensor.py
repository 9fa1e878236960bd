"""FP8 as products take it: both kinds of codes, both layouts, both rules of scales, and what is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from ling.ops import fp8_tensor
from ling.ops.fp8 import E4M3, E5M2, LARGEST
from ling.ops.fp8_tensor import Fp8Tensor, measure_loss
from ling.scaling import precision

HALF_STEP = {E4M3: 2.0**-4, E5M2: 2.0**-3}
SMALLEST = {E4M3: 2.0**-9, E5M2: 2.0**-16}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 140), columns=st.integers(1, 260), exponent=st.integers(-40, 40), seed=st.integers(0, 99),
    kind=st.sampled_from([E4M3, E5M2]), layout=st.sampled_from(["tile", "block"]), power_of_two=st.booleans(),
)  # fmt: skip
def test_values_come_back_within_half_a_step(rows, columns, exponent, seed, kind, layout, power_of_two) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * 2.0**exponent
    x[0, 0] = 0.0
    make = Fp8Tensor.of_tiles if layout == "tile" else Fp8Tensor.of_blocks
    q = make(x, kind, power_of_two=power_of_two)
    grid = q.scale if layout == "tile" else q.scale.repeat_interleave(128, 0)[:rows]
    grid = grid.repeat_interleave(128, 1)[:, :columns]
    allowed = torch.maximum(x.abs() * HALF_STEP[kind], grid * SMALLEST[kind] / 2) * (1 + 1e-5)
    back = q.dequantize(torch.float32)
    assert q.codes.dtype == kind
    assert q.shape == x.shape
    assert bool(((back - x).abs() <= allowed).all())
    assert back[0, 0] == 0


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_float32_scales_use_the_whole_range_and_powers_of_two_at_least_half(kind: torch.dtype) -> None:
    x = torch.randn(9, 384)
    largest = Fp8Tensor.of_tiles(x, kind, power_of_two=False).codes.float().abs().view(9, 3, 128).amax(-1)
    assert bool((largest == LARGEST[kind]).all())
    q = Fp8Tensor.of_tiles(x, kind)
    assert bool((torch.frexp(q.scale).mantissa == 0.5).all())
    assert bool((q.codes.float().abs().view(9, 3, 128).amax(-1) >= LARGEST[kind] / 2).all())


@pytest.mark.parametrize("kind", [E4M3, E5M2])
@pytest.mark.parametrize("value", [0.0, torch.inf, -torch.inf, 3e38, 1e-45])
def test_extreme_tiles_saturate_and_never_become_infinite(kind: torch.dtype, value: float) -> None:
    x = torch.zeros(2, 128)
    x[0, 5] = value
    for q in (Fp8Tensor.of_tiles(x, kind), Fp8Tensor.of_blocks(x, kind, power_of_two=False)):
        assert bool(torch.isfinite(q.codes.float()).all()), (kind, value)
        assert bool(torch.isfinite(q.scale).all())
        assert not q.codes[1].float().any()


@pytest.mark.parametrize("shape", [(128, 256), (130, 70), (3, 96, 200)])
def test_the_transpose_of_blocks_is_that_of_the_values(shape: tuple[int, ...]) -> None:
    w = torch.randn(shape)
    q = Fp8Tensor.of_blocks(w)
    t, again = q.transpose(), Fp8Tensor.of_blocks(w.mT.contiguous())
    assert torch.equal(t.codes.view(torch.uint8), again.codes.view(torch.uint8))
    assert torch.equal(t.scale, again.scale)
    assert torch.equal(t.dequantize(torch.float32), q.dequantize(torch.float32).mT)


def test_a_stack_is_quantised_matrix_by_matrix() -> None:
    w = torch.randn(4, 130, 140) * torch.tensor([1.0, 100.0, 1e-3, 0.0]).view(4, 1, 1)
    q = Fp8Tensor.of_blocks(w)
    assert q.scale.shape == (4, 2, 2)
    for e in range(4):
        one = Fp8Tensor.of_blocks(w[e])
        assert torch.equal(one.dequantize(torch.float32), q.dequantize(torch.float32)[e])


def test_rows_are_gathered_with_their_scales_and_one_past_the_end_is_zero() -> None:
    x = torch.randn(5, 200)
    q = Fp8Tensor.of_tiles(x)
    values, picked = q.dequantize(torch.float32), q.rows(torch.tensor([4, 5, 0, 0])).dequantize(torch.float32)
    assert torch.equal(picked, torch.stack([values[4], torch.zeros(200), values[0], values[0]]))


def test_what_is_lost_is_counted() -> None:
    x = torch.zeros(2, 128)
    x[0, :4] = torch.tensor([448.0, 1e-3, 1e-4, 300.0])  # below half of the smallest step of 2^-9: lost
    x[1, 0] = 1.0
    found = measure_loss(x, Fp8Tensor.of_tiles(x))
    assert found.underflow.item() == pytest.approx(sum(abs(v) < 2**-10 for v in (448, 1e-3, 1e-4, 300, 1)) / 5)
    assert found.distortion.item() == pytest.approx(12 / (448**2 + 300**2 + 1) ** 0.5, rel=0.1)  # 300 becomes 288
    normal = torch.randn(64, 512)
    assert 0.02 < measure_loss(normal, Fp8Tensor.of_tiles(normal)).distortion < 0.03
    assert 0.04 < measure_loss(normal, Fp8Tensor.of_tiles(normal, E5M2)).distortion < 0.06
    assert measure_loss(torch.zeros(3, 3), Fp8Tensor.of_tiles(torch.zeros(3, 3))) == (0, 0)
    x[0, 0] = torch.inf
    assert not bool(torch.isfinite(measure_loss(x, Fp8Tensor.of_tiles(x)).distortion))


@pytest.mark.parametrize("limit", [1, 128 * 200, 3 * 130 * 200, 2**23])
@pytest.mark.parametrize("shape", [(300, 200), (7, 130, 200), (2, 3, 128, 128)])
def test_what_is_lost_does_not_depend_on_the_pieces(monkeypatch, shape: tuple[int, ...], limit: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[..., 0, 3] = 1e-5
    x[..., -1, :] = 0
    for q in (Fp8Tensor.of_tiles(x), Fp8Tensor.of_tiles(x, E5M2), Fp8Tensor.of_blocks(x, power_of_two=False)):
        back = q.dequantize(torch.float32)
        monkeypatch.setattr(fp8_tensor, "MEASURED_ELEMENTS", limit)
        found = measure_loss(x, q)
        assert found.underflow.item() == pytest.approx(float(((x != 0) & (back == 0)).sum() / (x != 0).sum()))
        assert found.distortion.item() == pytest.approx(float((back - x).double().norm() / x.double().norm()), rel=1e-4)


def test_rows_that_are_made_for_measuring_are_measured_as_if_they_had_been_there(monkeypatch) -> None:
    x, asked = torch.randn(300, 96), []
    monkeypatch.setattr(fp8_tensor, "MEASURED_ELEMENTS", 128 * 96)

    def rows(a: int, b: int) -> torch.Tensor:
        asked.append((a, b))
        return x[a:b]

    assert measure_loss(rows, Fp8Tensor.of_tiles(x)) == measure_loss(x, Fp8Tensor.of_tiles(x))
    assert asked == [(0, 128), (128, 256), (256, 300)]


@pytest.mark.parametrize("layout", ["tile", "block"])
def test_measuring_takes_no_more_memory_than_the_plan_gives_it(monkeypatch, layout: str) -> None:
    elements = 2**16
    assert fp8_tensor.MEASURED_ELEMENTS == precision.MEASURED_ELEMENTS
    given = precision.with_measuring(precision.PRECISIONS["fp8"]).measuring / precision.MEASURED_ELEMENTS * elements
    monkeypatch.setattr(fp8_tensor, "MEASURED_ELEMENTS", elements)
    x = torch.randn(16, 256, 256, dtype=torch.bfloat16)  # sixteen pieces
    x = x if layout == "block" else x.flatten(0, 1)
    q = (Fp8Tensor.of_tiles if layout == "tile" else Fp8Tensor.of_blocks)(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        measure_loss(x, q)
    live = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert given / 3 < peak <= given
