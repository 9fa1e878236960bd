"""One product of a layer's size by a back end that was asked for by name, before a step depends on it.

A library may be there and still not multiply: built for another CUDA, without a compiler, or in a version that reads
scales otherwise and says nothing. So its products are made once, with as few rows as show it, and compared.
"""

import torch
from torch import Tensor

from ling.errors import BackendError
from ling.ops.backend import on_backend
from ling.ops.deep_gemm.library import first_line
from ling.ops.fp8 import BLOCK
from ling.ops.fp8_linear import Fp8Rule
from ling.ops.fp8_matmul import fp8_grouped_matmul, fp8_matmul
from ling.ops.fp8_tensor import Fp8Tensor

_ROWS = 5
_COUNTS = (128, 0, 256)
_MOST_ERROR = 0.01
"""Relative to the norm: bfloat16 results are within 0.002, and a tensor core's short sums within 0.001."""


def try_products(rule: Fp8Rule, shape: tuple[int, int], device: torch.device, *, grouped: bool) -> str | None:
    """Return why the rule's back end cannot make y and dx with a weight (M, K), or experts of it; None if it can."""
    generator = torch.Generator(device).manual_seed(0)
    M, K = shape
    N, stack = (sum(_COUNTS), (len(_COUNTS),)) if grouped else (_ROWS, ())
    weight = rule.weight(_draw((*stack, M, K), BLOCK, generator))
    try:
        wrong = _compare(rule, rule.rows(_draw((N, K), 1, generator), None, ""), weight) or _compare(
            rule, rule.rows(_draw((N, M), 1, generator), None, "", rule.gradient_kind), weight.transpose()
        )
    except BackendError as error:
        return str(error)
    except (RuntimeError, TypeError, ValueError, OSError, AssertionError) as error:  # of a type: other arguments
        return f"a trial product by a weight of {M} x {K} fails: {first_line(error)}"
    return None if wrong is None else f"a trial product by a weight of {M} x {K} is {wrong:.1%} off"


def _draw(shape: tuple[int, ...], rows: int, generator: torch.Generator) -> Tensor:
    """Return values whose tiles of so many rows differ in size, so that a scale read in another's place shows.

    Of plain noise nearly all scales are the same once they are rounded to powers of two.
    """
    *stack, M, K = shape
    tiles = (*stack, -(-M // rows), -(-K // BLOCK))
    size = 4.0 ** torch.randn(tiles, generator=generator, device=generator.device)
    size = size.repeat_interleave(rows, -2)[..., :M, :].repeat_interleave(BLOCK, -1)[..., :K]
    return torch.randn(shape, generator=generator, device=generator.device) * size


def _compare(rule: Fp8Rule, rows: Fp8Tensor, weight: Fp8Tensor) -> float | None:
    """Return the relative error of a product if it is more than rounding, else None."""
    if weight.codes.dim() == 2:
        got = rule.multiply(rows, weight, torch.bfloat16)
        expected = on_backend("reference", fp8_matmul)(rows, weight, torch.float32)
    else:
        offsets = torch.tensor(_COUNTS, device=rows.codes.device).cumsum(0).to(torch.int32)
        got = rule.multiply_groups(rows, weight, offsets, torch.bfloat16)
        expected = on_backend("reference", fp8_grouped_matmul)(rows, weight, offsets, torch.float32)
    error = float((got.float() - expected).norm() / expected.norm())
    return None if error <= _MOST_ERROR else error  # NaN is more
