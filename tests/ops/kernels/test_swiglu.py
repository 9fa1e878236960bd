"""The kernels of SwiGLU."""

import pytest
import torch
from tests.ops.kernels.comparing import draw, same_bytes, tolerance
from torch import Tensor

from ling.ops import mlp
from ling.ops.fp8 import E4M3, E5M2
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton.swiglu import swiglu, swiglu_backward, swiglu_backward_fp8, swiglu_fp8
from ling.testing.tolerances import Tolerance, assert_close


def reference(gate_up: Tensor, mix: Tensor | None) -> Tensor:
    product = mlp.swiglu(*gate_up.chunk(2, dim=1))
    return product if mix is None else product * mix[:, None]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("R", "F"), [(1, 8), (5, 200), (3, 1100)])
def test_products_and_gradients_agree_with_the_reference(R: int, F: int, dtype: torch.dtype, weighted: bool) -> None:
    gate_up, dproduct = draw(0, R, 2 * F, dtype=dtype, scale=3), draw(1, R, F, dtype=dtype)
    mix = draw(2, R).abs() if weighted else None
    wanted = [gate_up.float().requires_grad_()] + ([] if mix is None else [mix.clone().requires_grad_()])
    exact = reference(wanted[0], wanted[1] if weighted else None)
    got = swiglu(gate_up, mix)
    assert_close(got, exact, tolerance(dtype))
    gradients = swiglu_backward(dproduct, gate_up, mix)[: len(wanted)]
    for found, expected in zip(gradients, torch.autograd.grad(exact, wanted, dproduct.float()), strict=True):
        assert found is not None
        assert_close(found, expected, tolerance(dtype))
    if not weighted and dtype == torch.bfloat16:
        assert (got != reference(gate_up, None)).float().mean() < 0.01  # both roundings of the published order


@pytest.mark.parametrize(("kind", "power_of_two"), [(E4M3, True), (E5M2, False)])
@pytest.mark.parametrize("F", [128, 384, 200])
def test_codes_are_those_of_the_product_and_of_its_gradient(F: int, kind: torch.dtype, power_of_two: bool) -> None:
    gate_up, mix = draw(0, 5, 2 * F, dtype=torch.bfloat16, scale=20), draw(1, 5).abs()
    mix[2] = 0  # a row of padding
    found = swiglu_fp8(gate_up, mix, power_of_two=power_of_two)
    exact = reference(gate_up.float(), mix)
    expected = Fp8Tensor.of_tiles(exact, power_of_two=power_of_two)
    assert (found.codes.view(torch.uint8) != expected.codes.view(torch.uint8)).float().mean() < 0.002  # exp's last bit
    assert_close(found.dequantize(torch.float32), exact, Tolerance(0, 2**-4, "half an E4M3 step"))
    if F % 128 == 0:
        dproduct = draw(2, 5, F, dtype=torch.bfloat16)
        dgate_up, dmix, found = swiglu_backward_fp8(dproduct, gate_up, mix, kind, power_of_two=power_of_two)
        expected = Fp8Tensor.of_tiles(dgate_up, kind, power_of_two=power_of_two)
        same_bytes(found.codes, expected.codes)
        same_bytes(found.scale, expected.scale)
        for got, plain in zip((dgate_up, dmix), swiglu_backward(dproduct, gate_up, mix), strict=True):
            assert torch.equal(got, plain)
