"""Triton's kernels on a GPU: every test that runs in the interpreter, on the device; then Ling-mini's sizes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ling.ops import fp8_matmul
from ling.ops.attention import HeadShape, split_norm_rope
from ling.ops.backend import use_backend
from ling.ops.cross_entropy import linear_cross_entropy
from ling.ops.fp8 import quantize_training_block
from ling.ops.fp8_experts import fp8_mix_experts
from ling.ops.fp8_linear import Fp8Rule
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.moe import mix_experts
from ling.ops.norm import rms_norm
from ling.ops.rope import Rope
from ling.ops.router import RouterRule, count_experts, route
from tests.ops.kernels import (
    test_adamw,
    test_attention_prologue,
    test_cross_entropy,
    test_fp8_products,
    test_gradient_norm,
    test_norm,
    test_paged_attention,
    test_quantize,
    test_router,
    test_rows,
    test_swiglu,
)
from tests.ops.kernels.comparing import draw, same_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

for module in (
    test_adamw, test_attention_prologue, test_cross_entropy, test_fp8_products, test_gradient_norm, test_norm,
    test_paged_attention, test_quantize, test_router, test_rows, test_swiglu,
):  # fmt: skip
    globals().update({name: value for name, value in vars(module).items() if name.startswith("test_")})

N, H, E, F, k = 4096, 2048, 256, 512, 8
RULE = RouterRule(num_experts_per_tok=k, n_group=8, topk_group=4, routed_scaling_factor=2.5)
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda"):
        yield


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def both(function, *inputs: Tensor) -> dict[str, list[Tensor]]:
    """Run forward and backward by kernels, by the reference, and by the reference in float32: (outputs, gradients)."""
    found = {}
    for name, backend in (("triton", "triton"), ("reference", "reference"), ("exact", "reference")):
        leaves = [(x.float() if name == "exact" else x.clone()).requires_grad_() for x in inputs]
        with use_backend(backend):
            out = function(*leaves)
            parts = [out] if isinstance(out, Tensor) else list(out)
            upstream = [draw(90 + i, *part.shape, dtype=part.dtype) for i, part in enumerate(parts)]
            found[name] = [*parts, *torch.autograd.grad(parts, leaves, upstream)]
    return found


def no_further_than_the_reference(found: dict[str, list[Tensor]], slack: float = 1.2) -> None:
    """Kernels round less often than the composition does, so they are at least about as close to float32."""
    for i, (got, theirs, exact) in enumerate(zip(found["triton"], found["reference"], found["exact"], strict=True)):
        mine, others = error(got, exact), error(theirs, exact)
        assert mine <= slack * others + 1e-6, f"result {i}: {mine:.2e}, the reference is {others:.2e} away"


def test_norm_of_real_rows() -> None:
    found = both(lambda x, w: rms_norm(x, w, 1e-6), draw(0, N, H, dtype=BF16), draw(1, H, dtype=BF16))
    no_further_than_the_reference(found)


def test_heads_of_real_tokens() -> None:
    heads = HeadShape(16, 4, 128, 1e-6)
    angles = torch.arange(N)[:, None] * torch.logspace(0, -5, 32)
    inputs = draw(0, N, 24, 128, dtype=BF16), draw(1, 128, dtype=BF16), draw(2, 128, dtype=BF16)

    def run(qkv: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return split_norm_rope(qkv, query, key, heads, Rope(angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)))

    no_further_than_the_reference(both(run, *inputs), slack=1.5)


def test_routes_of_real_tokens() -> None:
    x, weight, bias = draw(0, N, H, dtype=BF16), draw(1, E, H, scale=H**-0.5), draw(2, E, scale=0.01)
    with use_backend("triton"):
        got = route(x, weight, bias, RULE)
    with use_backend("reference"):
        expected = route(x, weight, bias, RULE)
    assert error(got.logits, expected.logits) < 1e-6
    assert int(got.counts.sum()) == N * k
    assert torch.equal(got.counts, count_experts(got.ids, E))
    differing = (got.ids.sort(1).values != expected.ids.sort(1).values).any(1).float().mean()
    assert differing < 1e-3, f"{differing:.2%} of the tokens go elsewhere"  # two scores within the last bit


def layer(seed: int, dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Tokens to experts by a router that prefers some: many rows here, few or none there."""
    scores = draw(seed, N, E) + 3 * draw(seed + 1, E)
    ids = scores.topk(k, dim=1).indices
    shapes = [(N, H), (N, k), (E, 2 * F, H), (E, H, F)]
    x, mix, gate_up, down = (draw(seed + 2 + i, *shape, dtype=dtype) for i, shape in enumerate(shapes))
    return ids, count_experts(ids, E), (x, mix.float().softmax(1) * 2.5, gate_up / H**0.5, down / F**0.5)


def test_experts_of_real_size_in_bfloat16() -> None:
    ids, counts, inputs = layer(0)
    found = both(lambda x, mix, gate_up, down: mix_experts(x, ids, mix, counts, gate_up, down), *inputs)
    no_further_than_the_reference(found, slack=1.5)


def test_experts_of_real_size_in_fp8() -> None:
    ids, counts, inputs = layer(10)
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with use_backend(backend):
            x, mix, gate_up, down = leaves
            y = fp8_mix_experts(x, ids, mix, counts, gate_up, down, Fp8Rule())
            results.append((y, *torch.autograd.grad(y, leaves, draw(99, N, H, dtype=BF16))))
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert error(got, expected) < 0.01, f"result {i}: {error(got, expected):.2e}"


@pytest.mark.parametrize("S", [1, 300, N * k])
def test_products_of_real_size_in_fp8(S: int) -> None:
    """The tensor core sums 128 products with fewer bits than float32: the bound is what that may cost."""
    cuts = torch.randint(0, S + 1, (E - 1,)).sort().values
    offsets = torch.cat([cuts, torch.tensor([S])]).to(torch.int32)
    rows = Fp8Tensor.of_tiles(draw(0, S, H, dtype=BF16))
    weights = Fp8Tensor.of_blocks(draw(1, E, 2 * F, H, dtype=BF16))
    with use_backend("triton"):
        got = fp8_matmul.fp8_grouped_matmul(rows, weights, offsets, torch.float32)
    with use_backend("reference"):
        expected = fp8_matmul.fp8_grouped_matmul(rows, weights, offsets, torch.float32)
    assert error(got, expected) < 1e-3, error(got, expected)


def test_weights_of_real_size_have_the_same_codes_and_transpose_exactly() -> None:
    w = draw(0, E, 2 * F, H, dtype=BF16)
    found = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            codes = Fp8Tensor(*quantize_training_block(w), "block")
            found.append((codes.codes, codes.scale, codes.transpose().codes, codes.transpose().scale))
    for got, expected in zip(*found, strict=True):
        same_bytes(got, expected)


def test_loss_of_the_real_vocabulary() -> None:
    labels = torch.randint(157184, (1500,))
    labels[::7] = -100
    inputs = draw(0, 1500, H, dtype=BF16), draw(1, 157184, H, dtype=BF16, scale=H**-0.5)
    no_further_than_the_reference(both(lambda h, w: linear_cross_entropy(h, w, labels).total[None], *inputs), slack=1.5)
