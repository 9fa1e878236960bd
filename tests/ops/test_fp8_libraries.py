"""FP8 products by libraries, as far as a CPU can tell: they are called as documented, and say why they cannot be."""

import inspect

import pytest
import torch
from tests.ops import fp8_contracts as contracts
from tests.ops.fp8_contracts import draw, operands
from torch import Tensor

from ling.errors import BackendError
from ling.ops.backend import on_backend, use_backend
from ling.ops.deep_gemm.fp8_grouped_matmul import experts_of_rows
from ling.ops.fp8_experts import fp8_mix_experts
from ling.ops.fp8_linear import Fp8Rule, fp8_linear
from ling.ops.fp8_matmul import fp8_grouped_matmul, fp8_matmul
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.router import count_experts
from ling.testing.tolerances import Tolerance, assert_close

BF16 = torch.bfloat16
LIBRARIES = ("scaled_mm", "deep_gemm")
pytestmark = pytest.mark.usefixtures("nothing_remembered")
ROUNDED = Tolerance(1e-6, 2**-8, "one rounding to bfloat16 of sums in another order")
CPU = torch.device("cpu")


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize(("N", "M", "K"), [(1, 128, 128), (4, 256, 128), (7, 128, 640), (130, 384, 512)])
@pytest.mark.usefixtures("doubles")
def test_a_product_is_that_of_the_reference_both_ways(library: str, power_of_two: bool, N: int, M: int, K: int) -> None:
    rows, weight = operands(N, M, K, power_of_two=power_of_two)
    back = Fp8Tensor.of_tiles(draw(4, N, M), power_of_two=power_of_two)
    for a, b in ((rows, weight), (back, weight.transpose())):
        got = on_backend(library, fp8_matmul)(a, b, BF16)
        assert (got.dtype, got.is_contiguous()) == (BF16, True)
        assert_close(got, fp8_matmul(a, b, torch.float32), ROUNDED)


DIVISIONS = {
    "an empty expert and one with one row": [130, 0, 1, 128],
    "all rows to the last": [0, 0, 0, 70],
    "one-row experts": [1, 1, 1, 1],
    "the first and the last are empty": [0, 128, 3, 0],
}


@pytest.mark.parametrize("counts", DIVISIONS.values(), ids=DIVISIONS)
@pytest.mark.usefixtures("doubles")
def test_each_group_of_rows_meets_its_expert(counts: list[int]) -> None:
    ends = torch.tensor([-(-n // 128) * 128 for n in counts]).cumsum(0).to(torch.int32)
    belong = int(ends[-1])
    rows = Fp8Tensor.of_tiles(draw(0, belong + 256, 256))  # as many more as belong to nobody
    weights = Fp8Tensor.of_blocks(draw(1, 4, 128, 256) * torch.tensor([1.0, 4, 16, 64])[:, None, None])
    got = on_backend("deep_gemm", fp8_grouped_matmul)(rows, weights, ends, BF16)
    assert_close(got[:belong], fp8_grouped_matmul(rows, weights, ends, torch.float32)[:belong], ROUNDED)
    assert got[belong:].isnan().all()


def test_rows_know_their_expert_and_those_of_nobody_that_they_have_none() -> None:
    offsets = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    assert experts_of_rows(offsets, 5).tolist() == [1, 1, 3, -1, -1]
    assert experts_of_rows(offsets, 5).dtype == torch.int32


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.usefixtures("doubles")
def test_a_linear_map_and_its_gradients_are_those_of_the_reference(library: str) -> None:
    found = []
    for backend in (library, "auto"):
        x, weight = (draw(i, n, m).to(BF16).requires_grad_() for i, (n, m) in enumerate([(5, 256), (128, 256)]))
        y = fp8_linear(x, weight, Fp8Rule(backend=backend))
        found.append((y, *torch.autograd.grad(y, [x, weight], draw(2, 5, 128).to(BF16))))
        assert len(contracts.CALLS) == 2  # y and dx
    for got, expected in zip(*found, strict=True):
        assert_close(got, expected, ROUNDED)


CHOICES = {
    "spread": torch.randint(0, 4, (40, 2), generator=torch.Generator().manual_seed(3)),
    "one token": torch.tensor([[3, 0]]),
    "all to one": torch.tensor([[2]]).repeat(129, 1),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.usefixtures("doubles")
def test_experts_and_their_gradients_are_those_of_the_reference(choice: str) -> None:
    ids, (E, H, F) = CHOICES[choice], (4, 128, 128)
    found = []
    for rule in (Fp8Rule(backend="deep_gemm"), Fp8Rule(backend="scaled_mm"), Fp8Rule()):
        x, gate_up, down = (
            (draw(i, *shape) * size).to(BF16).requires_grad_()
            for i, (shape, size) in enumerate([((len(ids), H), 1), ((E, 2 * F, H), 0.1), ((E, H, F), 0.1)])
        )
        mix = draw(3, *ids.shape).abs().requires_grad_()
        y = fp8_mix_experts(x, ids, mix, count_experts(ids, E), gate_up, down, rule)
        found.append((y, *torch.autograd.grad(y, [x, mix, gate_up, down], draw(4, len(ids), H).to(BF16))))
        assert contracts.CALLS == ["m_grouped_fp8_gemm_nt_contiguous"] * 4
    for got, without_grouped, expected in zip(*found, strict=True):
        assert_close(got, expected, Tolerance(1e-6, 2**-6, "a code on an edge may fall to either side"))
        assert torch.equal(without_grouped, expected), "scaled_mm has no grouped products"


def test_the_doubles_take_what_the_libraries_take() -> None:
    assert list(inspect.signature(contracts.scaled_mm).parameters) == list(
        inspect.signature(torch.nn.functional.scaled_mm).parameters
    )


def rows_by_columns(scale: Tensor) -> Tensor:
    return scale.t().contiguous().t()


BREACHES = {
    "row by row": ("scale_a has strides", lambda r, w: (r.codes, w.codes.t(), r.scale, w.scale.t())),
    "no room": ("scale_b is 4 x 2, not", lambda r, w: (r.codes, w.codes.t(), rows_by_columns(r.scale), w.scale.t())),
    "row by row weight": ("mat_b is column by column", lambda r, w: (r.codes, w.codes.t().contiguous(), r.scale, None)),
    "odd rows": ("are a multiple of 4", lambda r, w: (r.codes[:3], w.codes.t(), r.scale[:3], w.scale.t())),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_call_that_breaks_the_contract_of_scaled_mm_fails(breach: str) -> None:
    line, arguments = BREACHES[breach]
    a, b, scale_a, scale_b = arguments(*operands(8, 256, 256))
    recipes = torch.nn.functional.ScalingType.BlockWise1x128, torch.nn.functional.ScalingType.BlockWise128x128
    with pytest.raises(contracts.ContractError, match=line):
        contracts.scaled_mm(a, b, scale_a, recipes[0], scale_b, recipes[1])


@pytest.mark.usefixtures("doubles")
def test_groups_that_begin_elsewhere_break_the_contract_of_deep_gemm() -> None:
    rows, weights = Fp8Tensor.of_tiles(draw(0, 256, 128)), Fp8Tensor.of_blocks(draw(1, 2, 128, 128))
    with pytest.raises(contracts.ContractError, match="rows 0 to 128 have two experts"):
        on_backend("deep_gemm", fp8_grouped_matmul)(rows, weights, torch.tensor([16, 256], dtype=torch.int32), BF16)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.usefixtures("doubles")
def test_no_rows_give_no_rows(name: str) -> None:
    rows, weight = operands(4, 256, 128)
    none = Fp8Tensor(rows.codes[:0], rows.scale[:0], "tile")
    assert on_backend(name, fp8_matmul)(none, weight, BF16).shape == (0, 256)
    stack, offsets = Fp8Tensor.of_blocks(draw(0, 2, 256, 128)), torch.zeros(2, dtype=torch.int32)
    for backend in (name, "triton"):  # which refuses what is empty
        assert Fp8Rule(backend=backend).multiply(none, weight, BF16).shape == (0, 256)
        assert Fp8Rule(backend=backend).multiply_groups(none, stack, offsets, BF16).shape == (0, 256)


@pytest.mark.usefixtures("doubles")
def test_what_is_forced_for_all_comes_before_what_one_call_asks_for() -> None:
    rows, weight = operands(4, 128, 128)
    with use_backend("reference"):
        assert on_backend("deep_gemm", fp8_matmul)(rows, weight, torch.float32).dtype == torch.float32
    with use_backend("cpu"), pytest.raises(BackendError, match="results are bfloat16"):  # an op without a twin of it
        on_backend("deep_gemm", fp8_matmul)(rows, weight, torch.float32)
    with use_backend("deep_gemm"):
        assert Fp8Rule().row_multiple == 128
    assert (Fp8Rule().row_multiple, Fp8Rule(backend="deep_gemm").row_multiple) == (16, 128)
    assert fp8_matmul(rows, weight, torch.float32).dtype == torch.float32  # never chosen
