"""The kernels that multiply FP8 codes, over every kind of division among experts."""

import pytest
import torch
from tests.ops.kernels.comparing import KERNEL_32, draw, tolerance
from torch import Tensor

from ling.ops import fp8_matmul as products
from ling.ops.backend import use_backend
from ling.ops.fp8 import E4M3, E5M2
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton import (
    fp8_columns,
    fp8_grouped_columns,
    fp8_grouped_matmul,
    fp8_grouped_weight_grad,
    fp8_matmul,
    fp8_weight_grad,
)
from ling.testing.tolerances import assert_close

DIVISIONS = {
    "an empty expert and one with one row": [70, 0, 1],
    "all rows to one expert": [0, 0, 66],
    "many small ones": [3, 1, 0, 2, 5],
    "only empty ones but the first": [1, 0, 0],
}


def offsets(counts: list[int]) -> Tensor:
    return torch.tensor(counts).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("kind", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize(("S", "M", "K"), [(5, 48, 128), (70, 144, 208)])
def test_a_product_is_that_of_the_values(S: int, M: int, K: int, kind: torch.dtype) -> None:
    rows, weight = Fp8Tensor.of_tiles(draw(0, S, K), kind), Fp8Tensor.of_blocks(draw(1, M, K))
    got = fp8_matmul.forward(rows, weight, torch.float32)
    with use_backend("reference"):
        assert_close(got, products.fp8_matmul(rows, weight, torch.float32), KERNEL_32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("counts", DIVISIONS.values(), ids=DIVISIONS)
def test_each_group_of_rows_meets_its_expert(counts: list[int], dtype: torch.dtype) -> None:
    S, M, K = sum(counts) + 9, 48, 144  # nine rows belong to nobody
    rows = Fp8Tensor.of_tiles(draw(0, S, K) * 10)
    weights = Fp8Tensor.of_blocks(draw(1, len(counts), M, K), power_of_two=False)
    got = fp8_grouped_matmul.forward(rows, weights, offsets(counts), dtype)
    assert got.dtype == dtype
    with use_backend("reference"):
        expected = products.fp8_grouped_matmul(rows, weights, offsets(counts), torch.float32)
    assert_close(got[: sum(counts)], expected[: sum(counts)], tolerance(dtype))


@pytest.mark.parametrize("counts", DIVISIONS.values(), ids=DIVISIONS)
def test_weight_gradients_are_made_of_the_rows_as_they_were_kept(counts: list[int]) -> None:
    S, M, K = sum(counts) + 9, 40, 136
    dy, x = draw(0, S, M, dtype=torch.bfloat16), Fp8Tensor.of_tiles(draw(1, S, K), power_of_two=False)
    got = fp8_grouped_weight_grad.forward(dy, x, offsets(counts), torch.float32)
    with use_backend("reference"):
        expected = products.fp8_grouped_weight_grad(dy, x, offsets(counts), torch.float32)
        whole = products.fp8_weight_grad(dy, x, torch.float32)
    assert_close(got, expected, KERNEL_32)
    assert_close(fp8_weight_grad.forward(dy, x, torch.float32), whole, KERNEL_32)
    for e, count in enumerate(counts):
        assert count or not got[e].any()


@pytest.mark.parametrize("counts", [[128, 0, 256], [0, 0, 128]], ids=str)
def test_weight_gradients_in_fp8_are_made_of_columns(counts: list[int]) -> None:
    S, M, K = sum(counts) + 40, 24, 136
    dy, x = Fp8Tensor.of_tiles(draw(0, M, S), E5M2), Fp8Tensor.of_tiles(draw(1, K, S), power_of_two=False)
    with use_backend("reference"):
        expected = products.fp8_grouped_columns(dy, x, offsets(counts), torch.float32)
        whole = products.fp8_columns(dy, x, torch.float32)
    assert_close(fp8_grouped_columns.forward(dy, x, offsets(counts), torch.float32), expected, KERNEL_32)
    assert_close(fp8_columns.forward(dy, x, torch.float32), whole, KERNEL_32)
