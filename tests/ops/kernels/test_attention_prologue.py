"""The kernels that split, normalise and rotate."""

import pytest
import torch
from tests.ops.kernels.comparing import draw, tolerance
from torch import Tensor

from ling.ops.attention import HeadShape, split_norm_rope
from ling.ops.backend import use_backend
from ling.ops.rope import Rope
from ling.testing.tolerances import assert_close


def run(backend: str, heads: HeadShape, rope: Rope, *inputs: Tensor) -> tuple[Tensor, ...]:
    qkv, query, key, *upstream = [x.clone() for x in inputs]
    wanted = [x.requires_grad_() for x in (qkv, query, key)]
    with use_backend(backend):
        out = split_norm_rope(qkv, query, key, heads, rope)
    return *(x.detach() for x in out), *torch.autograd.grad(out, wanted, upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("A", "K", "D", "r"), [(3, 1, 16, 8), (4, 2, 32, 32), (2, 2, 8, 2)])
def test_heads_and_gradients_agree_with_the_reference(A: int, K: int, D: int, r: int, dtype: torch.dtype) -> None:
    heads, N = HeadShape(A, K, D, 1e-6), 7
    angles = torch.arange(N)[:, None] * torch.linspace(1, 0.1, r // 2)
    rope = Rope(angles.cos().to(dtype), angles.sin().to(dtype))
    shapes = [(N, A + 2 * K, D), (D,), (D,), (N, A, D), (N, K, D), (N, K, D)]
    inputs = [draw(i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]
    got = run("triton", heads, rope, *inputs)
    exact = run("reference", heads, Rope(*(x.float() for x in rope)), *(x.float() for x in inputs))
    for name, a, b in zip(("q", "k", "v", "dqkv", "dquery", "dkey"), got, exact, strict=True):
        assert a.dtype == dtype
        assert_close(a, b, tolerance(dtype), name)
    if dtype == torch.bfloat16:
        for a, b in zip(got[:3], run("reference", heads, rope, *inputs)[:3], strict=True):
            assert (a != b).float().mean() < 0.01  # every rounding of the published order
