"""The kernel that adds up squares of many tensors."""

import torch
from tests.ops.kernels.comparing import KERNEL_32, draw

from ling.ops.backend import use_backend
from ling.ops.gradient_norm import sum_of_squares
from ling.ops.triton import gradient_norm
from ling.testing.tolerances import assert_close


def test_the_sum_over_tensors_of_all_shapes_and_dtypes_is_that_of_the_reference(monkeypatch) -> None:
    monkeypatch.setattr(gradient_norm, "_CHUNK", 5000)
    tensors = [draw(0, 7), draw(1, 120, 100), torch.empty(0, 3), draw(2, 3, 5, dtype=torch.bfloat16), draw(3, 1) * 1e3]
    with use_backend("triton"):
        got = sum_of_squares(tensors)
    with use_backend("reference"):
        assert_close(got, sum_of_squares(tensors), KERNEL_32)


def test_what_is_not_contiguous_is_left_to_the_reference() -> None:
    assert gradient_norm.why_not([draw(0, 3, 4).t()]) == "a tensor is not contiguous"
    assert gradient_norm.why_not([torch.empty(0)]) == "there is nothing to do"
