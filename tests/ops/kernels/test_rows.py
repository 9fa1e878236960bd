"""The kernels between tokens and rows, and the expert layers made of them."""

import pytest
import torch
from tests.ops import fp8_contracts
from tests.ops.kernels.comparing import draw, here, same_bytes, tolerance
from torch import Tensor

from ling.ops.backend import use_backend
from ling.ops.fp8_experts import fp8_mix_experts
from ling.ops.fp8_linear import Fp8Rule, fp8_linear
from ling.ops.fp8_tensor import Fp8Loss, Fp8Tensor, RowsOf, measure_loss
from ling.ops.moe import mix_experts
from ling.ops.router import count_experts
from ling.ops.row_order import order_rows, pad_order
from ling.ops.triton import rows
from ling.testing.tolerances import Tolerance, assert_close

ROUTES = {
    "a few": torch.tensor([[0, 3], [3, 1], [0, 1], [1, 3], [3, 0]]),  # expert 2 gets nothing
    "all to one": torch.full((150, 1), 2),
    "one token": torch.tensor([[1, 0, 3]]),
    "several blocks of pairs": torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i))[:2]
                                            for i in range(140)]),
}  # fmt: skip


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("ids", ROUTES.values(), ids=ROUTES)
def test_pairs_are_ordered_as_by_a_stable_sort(ids: Tensor, multiple: int) -> None:
    ids = here(ids)
    counts = count_experts(ids, 5)
    expected = pad_order(order_rows(ids, counts), ids, counts, multiple)
    for got, wanted in zip(rows.order_pairs(ids, counts, multiple), expected, strict=True):
        assert torch.equal(got, wanted)
        assert got.dtype == wanted.dtype


@pytest.mark.parametrize("ids", ROUTES.values(), ids=ROUTES)
def test_rows_are_gathered_with_their_scales_and_added_up_again(ids: Tensor) -> None:
    ids = here(ids)
    N, k = ids.shape
    order = pad_order(order_rows(ids, count_experts(ids, 5)), ids, count_experts(ids, 5), 16)
    x = draw(0, N, 200, dtype=torch.bfloat16)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1))
    same_bytes(rows.gather(x, order, k), padded[order.pair_of_slot // k])
    quantised = Fp8Tensor.of_tiles(x)
    got, wanted = rows.gather_fp8(quantised, order, k), quantised.rows(order.pair_of_slot // k)
    same_bytes(got.codes, wanted.codes)
    same_bytes(got.scale, wanted.scale)
    out, mix = draw(1, len(order.pair_of_slot), 200, dtype=torch.bfloat16), draw(2, N, k)
    summed = (out[order.slot_of_pair].float().view(N, k, -1) * mix[..., None]).sum(1)
    assert_close(rows.combine(out, order, k, mix, torch.float32), summed, tolerance(torch.float32))


@pytest.mark.parametrize("ids", [ROUTES["a few"], ROUTES["one token"]], ids=["a few", "one token"])
def test_experts_in_bfloat16_and_their_gradients_agree_with_the_reference(ids: Tensor) -> None:
    ids = here(ids)
    (N, k), E, H, F = ids.shape, 4, 32, 16
    inputs = [draw(0, N, H), draw(1, N, k).abs(), draw(2, E, 2 * F, H), draw(3, E, H, F), draw(4, N, H)]
    x, mix, gate_up, down, dy = (t if i == 1 else t.bfloat16() for i, t in enumerate(inputs))
    results = []
    for backend, dtype in (("triton", torch.bfloat16), ("reference", torch.float32)):
        wanted = [t.to(t.dtype if t is mix else dtype).requires_grad_() for t in (x, mix, gate_up, down)]
        arguments = (wanted[0], ids, wanted[1], count_experts(ids, E), *wanted[2:])
        with use_backend(backend):
            y = mix_experts(*arguments)
        results.append((y.detach(), *torch.autograd.grad(y, wanted, dy.to(dtype))))
    for name, got, exact in zip(("y", "dx", "dmix", "dgate_up", "ddown"), *results, strict=True):
        assert_close(got, exact, Tolerance(1e-6, 2**-5, "bfloat16 through two products"), name)


def test_few_tokens_meet_their_experts_with_the_roundings_of_the_reference() -> None:
    ids, E, H, F = here(ROUTES["a few"]), 4, 40, 24
    inputs = [draw(0, 5, H), draw(1, 5, 2).abs(), draw(2, E, 2 * F, H) / 4, draw(3, E, H, F) / 4]
    x, mix, gate_up, down = (t if i == 1 else t.bfloat16() for i, t in enumerate(inputs))
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend), torch.no_grad():
            results.append(mix_experts(x, ids, mix, count_experts(ids, E), gate_up, down))
    assert_close(results[0], results[1].float(), tolerance(torch.bfloat16))
    assert (results[0] != results[1]).float().mean() < 0.05  # sums in another order, seldom rounded to another value
    with use_backend("triton"), torch.no_grad():
        alone = mix_experts(x[3:4], ids[3:4], mix[3:4], count_experts(ids[3:4], E), gate_up, down)
    assert torch.equal(alone, results[0][3:4])


RULES = [Fp8Rule(), pytest.param(Fp8Rule(torch.float8_e5m2, power_of_two=False), marks=pytest.mark.slow)]


@pytest.mark.parametrize("rule", RULES, ids=["published", "other"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_in_fp8_and_their_gradients_are_those_of_the_composition(rule: Fp8Rule, dtype: torch.dtype) -> None:
    ids, E, H, F = here(ROUTES["a few"]), 4, 48, 128
    inputs = [draw(0, 5, H), draw(1, 5, 2).abs(), draw(2, E, 2 * F, H) / 7, draw(3, E, H, F) / 11, draw(4, 5, H)]
    x, mix, gate_up, down, dy = (t if i == 1 else t.to(dtype) for i, t in enumerate(inputs))
    results = []
    for backend in ("triton", "reference"):
        wanted = [t.clone().requires_grad_() for t in (x, mix, gate_up, down)]
        with use_backend(backend):
            y = fp8_mix_experts(wanted[0], ids, wanted[1], count_experts(ids, E), *wanted[2:], rule)
            results.append((y.detach(), *torch.autograd.grad(y, wanted, dy)))
    steps = Tolerance(1e-6, 2**-6, "a code on an edge may fall to either side")
    for name, got, expected in zip(("y", "dx", "dmix", "dgate_up", "ddown"), *results, strict=True):
        assert got.dtype == expected.dtype
        assert_close(got, expected, steps, name)


def test_whoever_watches_experts_in_fp8_sees_what_the_composition_shows() -> None:
    """The product is never written down, and rows of nobody are undefined: neither may show."""
    ids, E, H, F = here(ROUTES["a few"]), 4, 48, 128
    found: list[dict[str, Fp8Loss]] = []
    for backend in ("triton", "reference"):
        seen: dict[str, Fp8Loss] = {}

        def watch(name: str, values: Tensor | RowsOf, codes: Fp8Tensor, seen: dict[str, Fp8Loss] = seen) -> None:
            seen[name] = measure_loss(values, codes)

        x, mix = draw(0, 5, H).requires_grad_(), draw(1, 5, 2).abs()
        gate_up, down = draw(2, E, 2 * F, H) / 7, draw(3, E, H, F) / 11
        with use_backend(backend):
            y = fp8_mix_experts(x, ids, mix, count_experts(ids, E), gate_up, down, Fp8Rule(), watch)
            y.backward(draw(4, 5, H))
        found.append(seen)
    names = ["input", "gate_up", "product", "down", "output gradient", "hidden gradient"]
    assert list(found[0]) == list(found[1]) == names
    for name in names:
        for got, expected in zip(found[0][name], found[1][name], strict=True):
            assert_close(got, expected, Tolerance(2e-3, 5e-2, "a code on an edge may fall to either side"), name)
        assert 0.005 < found[0][name].distortion < 0.06, name


def test_an_fp8_linear_map_and_its_gradients_are_those_of_the_reference() -> None:
    results = []
    for backend in ("triton", "reference"):
        x, weight = draw(0, 5, 144).requires_grad_(), draw(1, 48, 144).requires_grad_()
        with use_backend(backend):
            y = fp8_linear(x, weight, Fp8Rule())
            results.append((y.detach(), *torch.autograd.grad(y, [x, weight], draw(2, 5, 48))))
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected, tolerance(torch.float32))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the library itself is asked (tests/gpu)")
def test_experts_of_fused_kernels_multiply_by_a_library_what_they_do_by_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, E, H, F = here(ROUTES["a few"]), 4, 128, 128
    inputs = [draw(0, 5, H), draw(1, 5, 2).abs(), draw(2, E, 2 * F, H) / 11, draw(3, E, H, F) / 11, draw(4, 5, H)]
    x, mix, gate_up, down, dy = (t if i == 1 else t.bfloat16() for i, t in enumerate(inputs))
    fp8_contracts.install(monkeypatch)
    results = []
    for rule in (Fp8Rule(backend="deep_gemm"), Fp8Rule()):
        wanted = [t.clone().requires_grad_() for t in (x, mix, gate_up, down)]
        y = fp8_mix_experts(wanted[0], ids, wanted[1], count_experts(ids, E), *wanted[2:], rule)
        results.append((y.detach(), *torch.autograd.grad(y, wanted, dy)))
        assert len(fp8_contracts.CALLS) == 4  # two products forward, two backward
    for name, got, expected in zip(("y", "dx", "dmix", "dgate_up", "ddown"), *results, strict=True):
        assert_close(got, expected, Tolerance(1e-6, 2**-6, "a code on an edge may fall to either side"), name)
