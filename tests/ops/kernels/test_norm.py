"""RMSNorm's kernels."""

import pytest
import torch
from tests.ops.kernels.comparing import draw, same_bytes, tolerance
from torch import Tensor

from ling.ops.backend import use_backend
from ling.ops.fp8 import quantize_e4m3_tile
from ling.ops.norm import rms_norm
from ling.ops.triton.norm import rms_norm_e4m3
from ling.testing.tolerances import assert_close


def run(backend: str, x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    with use_backend(backend):
        y = rms_norm(x, weight, 1e-6)
    return y.detach(), *torch.autograd.grad(y, [x, weight], dy.to(y.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (37, 200), (2, 3, 128), (600, 16)], ids=str)
def test_norm_and_its_gradients_agree_with_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, dy = draw(0, *shape, dtype=dtype), draw(1, shape[-1], dtype=dtype), draw(2, *shape, dtype=dtype)
    got = run("triton", x, weight, dy)
    expected = run("reference", x, weight, dy)
    exact = run("reference", x.float(), weight.float(), dy.float())
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    for name, a, b in zip(("y", "dx", "dweight"), got, exact, strict=True):
        assert_close(a, b, tolerance(dtype), name)
    if dtype == torch.bfloat16:
        assert (got[0] != expected[0]).float().mean() < 0.01  # both roundings of the published order


def test_a_float32_weight_gives_a_float32_result() -> None:
    x, weight = draw(0, 5, 64, dtype=torch.bfloat16), draw(1, 64)
    with use_backend("triton"):
        assert rms_norm(x, weight, 1e-6).dtype == torch.float32


@pytest.mark.parametrize("shape", [(5, 256), (3, 200)], ids=str)
def test_codes_made_with_the_norm_are_those_of_its_result(shape: tuple[int, int]) -> None:
    x = draw(0, *shape, dtype=torch.bfloat16)
    x[1] = 0
    x[0, 130:150] *= 1000
    y, _, codes, scale = rms_norm_e4m3(x, draw(1, shape[1], dtype=torch.bfloat16), 1e-6)
    expected_codes, expected_scale = quantize_e4m3_tile(y)
    same_bytes(codes, expected_codes)
    same_bytes(scale, expected_scale)
