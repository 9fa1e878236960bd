"""FP8 products by libraries on a GPU: against the reference and our kernels, at Ling-mini's sizes.

Skipped, with its own reason, is a library that is not there or not for this GPU.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ling.errors import BackendError
from ling.ops.backend import on_backend
from ling.ops.fp8_experts import fp8_mix_experts
from ling.ops.fp8_linear import Fp8Rule, fp8_linear
from ling.ops.fp8_matmul import fp8_grouped_matmul, fp8_matmul
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.fp8_trial import try_products
from ling.ops.router import count_experts
from tests.ops.kernels.comparing import draw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BF16 = torch.bfloat16
N, H, E, F, k = 4096, 2048, 256, 512, 8
WEIGHTS = [(3072, 2048), (2048, 3072), (5120, 2048), (2048, 5120), (2048, 2048), (512, 2048), (2048, 512)]
NEAR = 5e-3
"""Relative to the norm: one rounding to bfloat16 is 1.7e-3, and a tensor core's short sums are within 1e-3."""


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda"):
        yield


@pytest.fixture(params=["scaled_mm", "deep_gemm"])
def library(request: pytest.FixtureRequest) -> str:
    rows, weight = Fp8Tensor.of_tiles(draw(0, 4, 128)), Fp8Tensor.of_blocks(draw(1, 128, 128))
    try:
        on_backend(request.param, fp8_matmul)(rows, weight, BF16)
    except BackendError as refusal:
        pytest.skip(str(refusal))
    return request.param


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.detach().double() - exact.detach().double()).norm() / exact.detach().double().norm())


@pytest.mark.parametrize("rows", [1, 7, 4096])
@pytest.mark.parametrize(("M", "K"), WEIGHTS)
@pytest.mark.parametrize("power_of_two", [True, False])
def test_a_product_of_real_size(library: str, power_of_two: bool, M: int, K: int, rows: int) -> None:
    a = Fp8Tensor.of_tiles(draw(0, rows, K) * 4.0 ** draw(1, rows, 1), power_of_two=power_of_two)
    b = Fp8Tensor.of_blocks(draw(2, M, K), power_of_two=power_of_two)
    got = on_backend(library, fp8_matmul)(a, b, BF16)
    for other in ("reference", "triton"):
        assert error(got, on_backend(other, fp8_matmul)(a, b, torch.float32)) < NEAR, other


@pytest.mark.parametrize(("M", "K"), [(2 * F, H), (H, F)])
@pytest.mark.parametrize("most", [1, 40, 300])
def test_rows_of_real_experts(library: str, most: int, M: int, K: int) -> None:
    if library not in fp8_grouped_matmul.backends:
        pytest.skip(f"{library} has no grouped products")
    counts = (torch.rand(E, generator=torch.Generator("cpu").manual_seed(most), device="cpu") * (most + 1)).int()
    counts[::5] = 0
    ends = ((counts + 127) // 128 * 128).cumsum(0).to(torch.int32).cuda()
    belong = int(ends[-1])
    rows, weights = Fp8Tensor.of_tiles(draw(0, belong + 512, K)), Fp8Tensor.of_blocks(draw(1, E, M, K))
    got = on_backend(library, fp8_grouped_matmul)(rows, weights, ends, BF16)[:belong]
    for other in ("reference", "triton"):
        expected = on_backend(other, fp8_grouped_matmul)(rows, weights, ends, torch.float32)[:belong]
        assert error(got, expected) < NEAR, other


def test_a_linear_map_and_its_gradients(library: str) -> None:
    found = []
    for backend in (library, "triton"):
        x, weight = draw(0, N, H, dtype=BF16).requires_grad_(), draw(1, 3072, H, dtype=BF16).requires_grad_()
        y = fp8_linear(x, weight, Fp8Rule(backend=backend))
        found.append((y, *torch.autograd.grad(y, [x, weight], draw(2, N, 3072, dtype=BF16))))
    for got, expected in zip(*found, strict=True):
        assert error(got, expected) < NEAR


def test_experts_and_their_gradients(library: str) -> None:
    ids = (draw(0, N, E) + 3 * draw(1, E)).topk(k, dim=1).indices  # many rows here, few or none there
    found = []
    for backend in (library, "triton"):
        shapes = [((N, H), 1.0), ((E, 2 * F, H), H**-0.5), ((E, H, F), F**-0.5)]
        x, gate_up, down = (
            draw(2 + i, *shape, dtype=BF16, scale=scale).requires_grad_() for i, (shape, scale) in enumerate(shapes)
        )
        mix = draw(5, N, k).softmax(1).requires_grad_()
        y = fp8_mix_experts(x, ids, mix, count_experts(ids, E), gate_up, down, Fp8Rule(backend=backend))
        found.append((y, *torch.autograd.grad(y, [x, mix, gate_up, down], draw(6, N, H, dtype=BF16))))
    for i, (got, expected) in enumerate(zip(*found, strict=True)):
        assert error(got, expected) < 0.01, f"result {i}: {error(got, expected):.2e}"


def test_the_trial_of_a_run_that_begins(library: str) -> None:
    for shape in WEIGHTS:
        assert try_products(Fp8Rule(backend=library), shape, torch.device("cuda"), grouped=False) is None
    if library in fp8_grouped_matmul.backends:
        for shape in ((2 * F, H), (H, F)):
            assert try_products(Fp8Rule(backend=library), shape, torch.device("cuda"), grouped=True) is None
