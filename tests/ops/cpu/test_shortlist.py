"""A head that is looked at twice: what stands are the bits of the whole product, and nobody who counts falls."""

import math
from collections.abc import Iterator

import pytest
import torch
from tests.ops.cpu.weights import draw, levels, rounded, threads
from torch import Tensor

from ling.ops.choice import choose_tokens
from ling.ops.cpu import library as lib
from ling.ops.cpu.shortlist import MOST_RANKED, Shortlist, Wanted, dither, why_not
from ling.ops.linear import linear
from ling.ops.packed import GROUP, PackedWeight, quantize

pytestmark = pytest.mark.skipif(lib.library() is None, reason="the C library was not built")

SHAPES = ((1003, 256), (1, 32), (16, 64), (33, 70), (70, 1), (4096, 96))
SIGMA = math.sqrt((17**2 - 1) / 12)
"""Standard deviation of what a sketch leaves out of a byte: whole numbers from -8 to 8, each as likely."""


@pytest.fixture(autouse=True)
def nothing_learns() -> Iterator[None]:
    with torch.no_grad():
        yield


def head(V: int, H: int) -> Shortlist:
    return Shortlist(quantize(draw(V, H, seed=V), "int8"))  # type: ignore[arg-type]


def whole(x: Tensor, known: Shortlist) -> Tensor:
    return linear(x, known.weight)


def kept(y: Tensor) -> Tensor:
    return y > -math.inf


def bytes_of(weight: PackedWeight) -> Tensor:
    """Return the bytes of an int8 matrix, (rows, columns) with those that fill tiles up."""
    return weight.codes.movedim(-2, -4).flatten(-3).flatten(-3, -2).flatten(0, -2).long()


def looked_at_first(known: Shortlist) -> Tensor:
    """Return the bytes as the sketch has them, less what it leaves out."""
    codes = torch.cat([known.codes & 15, known.codes >> 4], dim=-3)
    rows = codes.movedim(-2, -4).flatten(-3).flatten(-3, -2).flatten(0, -2).long()
    return 17 * rows - known.dither.long() + 8


@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_stand_with_the_bits_of_the_whole_product(shape: tuple[int, int], level: str) -> None:
    known = head(*shape)
    for count in (1, 2, 5, 9):
        x = draw(count, shape[1], seed=count)
        expected = whole(x, known)
        for rank in (1, 2, 20, MOST_RANKED):
            got = known.logits(x, [Wanted(rank)] * count)
            assert torch.equal(got[kept(got)], expected[kept(got)])
            k = min(rank, shape[0])
            assert torch.equal(got.topk(k).values, expected.topk(k).values)
            assert torch.equal(kept(got) & (got >= got.topk(k).values[:, -1:]), expected >= got.topk(k).values[:, -1:])


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 50.0])
def test_noise_chooses_what_it_would_of_all(temperature: float, level: str) -> None:
    for V, H in SHAPES:
        known, x, keys = head(V, H), draw(40, H, seed=1), [2**63 + 977 * i for i in range(40)]
        for sharpness in (0.1, 1.0):
            rows = x * sharpness
            got = known.logits(rows, [Wanted(0, temperature, key) for key in keys])
            expected = choose_tokens(whole(rows, known), [temperature] * 40, keys)
            assert choose_tokens(got, [temperature] * 40, keys) == expected


def test_each_row_has_what_it_wants_whatever_stands_beside_it_and_however_many_threads_there_are() -> None:
    known, x = head(4096, 96), draw(7, 96, seed=3)
    wanted = [Wanted(1), Wanted(0, 1.0, 5), Wanted(20), Wanted(0, 0.5, 2**64 - 1), Wanted(2), Wanted(1), Wanted(64)]
    alone = torch.cat([known.logits(row[None], [own]) for row, own in zip(x, wanted)])
    for count in (1, 2, 3, 8):
        with threads(count):
            assert torch.equal(known.logits(x, wanted), alone)


def test_every_instruction_set_that_fuses_lets_the_same_stand() -> None:
    found = []
    for name in (name for name in levels() if name != "plain"):
        with lib.opened().at_level(name):
            known = head(1003, 256)
            found.append((known.codes.clone(), known.logits(draw(3, 256), [Wanted(1), Wanted(20), Wanted(0, 1.0, 7)])))
    for codes, logits in found[1:]:
        assert torch.equal(codes, found[0][0])
        assert torch.equal(logits, found[0][1])


def test_of_a_head_that_is_sure_little_is_read_again() -> None:
    known = head(16384, 256)
    x = known.weight.dequantize(torch.float32)[[5, 777, 16383]]
    assert whole(x, known).argmax(1).tolist() == [5, 777, 16383]
    got = known.logits(x, [Wanted(1)] * 3)
    assert kept(got).sum(1).tolist() == [16, 16, 16]  # a tile for each
    assert known.share_read_again == 6 / 1024  # of each row one to know what has to be reached, and that one to stand
    known.forget()
    assert known.share_read_again == 0


def test_what_the_sketch_leaves_out_is_each_whole_number_from_minus_8_to_8_as_often(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.setattr("ling.ops.cpu.shortlist.dither", lambda columns: (torch.arange(columns) % 17).to(torch.uint8))
    columns = 17 * GROUP
    every = torch.arange(256, dtype=torch.uint8).repeat_interleave(columns).view(256, columns)
    known = Shortlist(of_bytes(every))
    assert torch.equal(bytes_of(known.weight), every.long())
    left_out = (every.long() - looked_at_first(known)).view(256, GROUP, 17)
    assert torch.equal(left_out.sort().values, torch.arange(-8, 9).expand(256, GROUP, 17))


def test_dithers_are_evenly_spread_and_know_nothing_of_their_neighbours() -> None:
    values = dither(17 * 4096).double()
    assert torch.equal(dither(64), dither(4096)[:64])
    counts = values.long().bincount(minlength=17)
    assert len(counts) == 17
    assert ((counts - 4096).abs() < 5 * 64).all()
    for apart in (1, 2, 4, 16, 32):
        assert abs(torch.corrcoef(torch.stack([values[apart:], values[:-apart]]))[0, 1].item()) < 0.02


PATTERNS = ("normal", "all the same", "rows alike", "the largest step", "as the activations")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bounds_are_ten_standard_deviations_of_what_is_left_out(pattern: str) -> None:
    """Whatever the weights are: what decides is the dither, and it does not know them."""
    V, H = 512, 2048
    x = draw(24, H, seed=5)
    made = torch.randint(0, 256, (V, H), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    if pattern == "normal":
        made = (128 + 40 * draw(V, H)).clamp(0, 255).to(torch.uint8)
    elif pattern == "all the same":
        made[:] = 200
    elif pattern == "rows alike":
        made = made[:1].repeat(V, 1)
    elif pattern == "the largest step":
        made = (made > 127).to(torch.uint8) * 17 + 100
    elif pattern == "as the activations":
        made = (128 + 8 * x[:1].sign() * torch.arange(V)[:, None].remainder(8)).clamp(0, 255).to(torch.uint8)
    known = Shortlist(of_bytes(made))
    left_out = (bytes_of(known.weight) - looked_at_first(known)).double()
    activations = rounded(x).double()
    unlikely = (activations @ left_out.T) / (SIGMA * activations.square().sum(1, keepdim=True).sqrt())
    assert unlikely.abs().max() < 6
    if pattern == "normal":
        assert unlikely.std() == pytest.approx(1, abs=0.05)
    expected = whole(x, known)
    for rank in (1, 20):
        got = known.logits(x, [Wanted(rank)] * len(x))
        assert torch.equal(got.topk(rank).values, expected.topk(rank).values)


def test_tokens_that_tie_all_stand_and_the_first_is_chosen() -> None:
    values = draw(500, 64)
    values[[3, 200, 201, 499]] = 3 * values[7]
    known = Shortlist(quantize(values, "int8"))
    got = known.logits(values[7][None], [Wanted(1)])
    assert kept(got)[0, [3, 200, 201, 499]].all()
    assert choose_tokens(got, [0.0], [0]) == [3]


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-30, 1e-12, 1e12, 1e30, 3e37])
def test_activations_of_any_size_choose_the_same(size: float, level: str) -> None:
    known, x = head(4096, 96), draw(3, 96, seed=2)
    x[2, :64] *= 1e-12  # one group is all there is
    rows = x * size
    got, expected = known.logits(rows, [Wanted(1), Wanted(3), Wanted(1)]), whole(rows, known)
    assert torch.equal(got[kept(got)], expected[kept(got)])
    assert got.argmax(1).tolist() == expected.argmax(1).tolist()


@pytest.mark.parametrize("size", [1e-44, 1e-42, 1e-20, 1e20, 1e36, 3e37])
def test_activations_at_the_ends_of_float32_choose_the_same(size: float, level: str) -> None:
    """All are of one sign, and then so is what sums of codes lack: more than float32 holds where the product is not."""
    known = Shortlist(quantize(1e-3 * draw(1003, 64), "int8"))
    x = (-size * draw(8, 64, seed=2).abs().double()).float()
    got, expected = known.logits(x, [Wanted(1), Wanted(3)] * 4), whole(x, known)
    assert torch.equal(got[kept(got)], expected[kept(got)])
    assert got.argmax(1).tolist() == expected.argmax(1).tolist()
    assert torch.equal(got[1::2].topk(3).values, expected[1::2].topk(3).values)


def test_a_group_that_only_some_weights_meet_counts_for_them() -> None:
    """Activations that dwarf all others, where most rows have zeros: those rows are told apart by the others."""
    values, x = draw(640, 96), draw(8, 96, seed=4)
    values[:600, :32] = 0
    values[600:, :32] = values[600:, :32].abs()
    x[:, :32] = -1e20 * x[:, :32].abs()  # against those who meet it
    x[:, 32:] *= 1e-5  # squared, their share of the largest is no float32
    known = Shortlist(quantize(values, "int8"))
    got, expected = known.logits(x, [Wanted(1)] * 8), whole(x, known)
    assert (expected[:, 600:] < -1e20).all()
    assert (expected[:, :600].abs() < 1e-2).all()
    assert torch.equal(got[kept(got)], expected[kept(got)])
    assert got.argmax(1).tolist() == expected.argmax(1).tolist()


def test_who_stands_is_who_the_bound_says(level: str) -> None:
    """The bound in float64, from the sketch alone: ten standard deviations above what it makes of a row."""
    V, H = 2000, 192
    known, x = head(V, H), draw(6, H, seed=8)
    got, expected = known.logits(x, [Wanted(1)] * 6), whole(x, known)
    scales = known.weight.scales.double().transpose(-1, -2).flatten(0, 1)[:V]  # (V, groups)
    values = (looked_at_first(known)[:V] - 128).unflatten(-1, (-1, GROUP)) * scales[..., None]
    activations = rounded(x).double()
    about = activations @ values.flatten(1).T
    energies = activations.square().unflatten(-1, (-1, GROUP)).sum(-1)
    bounds = about + 10 * SIGMA * (energies @ scales.square().T).sqrt()
    reached = expected.double().gather(1, bounds.argmax(1, keepdim=True))
    over = torch.nn.functional.pad(bounds - reached, (0, -V % 16), value=-math.inf).unflatten(-1, (-1, 16)).amax(-1)
    stands = kept(torch.nn.functional.pad(got, (0, -V % 16), value=-math.inf)).unflatten(-1, (-1, 16)).any(-1)
    assert 6 < stands.sum() < 6 * 60  # of 125 tiles each
    clear = over.abs() > 2e-3 * SIGMA * (energies.sum(1, keepdim=True) * scales.square().max()).sqrt()
    assert clear.float().mean() > 0.99
    assert torch.equal(stands[clear], over[clear] >= 0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wanted", [Wanted(1), Wanted(20), Wanted(0, 1.0, 3)])
def test_what_is_not_finite_reads_all_and_spoils_its_own_row_alone(wrong: float, wanted: Wanted, level: str) -> None:
    known, x = head(1003, 70), draw(2, 70)
    x[0, 5] = wrong
    got, expected = known.logits(x, [wanted] * 2), whole(x, known)
    assert got[0].isnan().all()
    assert expected[0].isnan().all()
    assert torch.equal(got[1][kept(got[1])], expected[1][kept(got[1])])
    assert kept(got[1]).any()


def test_only_one_matrix_of_int8_has_a_sketch() -> None:
    assert why_not(quantize(draw(33, 64), "int8")) is None
    two = quantize(draw(33, 64), "int8", (16, 17))
    for other in (quantize(draw(33, 64), "int4"), quantize(draw(2, 33, 64), "int8"), two, draw(33, 64), None):
        assert why_not(other) == "it is not one matrix of int8"


def of_bytes(values: Tensor) -> PackedWeight:
    """Return a matrix with these bytes (tiles * 16, groups * 32) and scales of 1."""
    V, H = values.shape
    codes = values.view(V // 16, 16, H // GROUP, 8, 4).movedim(1, 3).contiguous()
    return PackedWeight("int8", codes, torch.ones(V // 16, H // GROUP, 16, dtype=torch.float16), (V,), H)
