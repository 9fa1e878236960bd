"""Ops on a GPU: chosen back ends against the reference on the same device and against the CPU."""

import pytest
import torch
from torch import Tensor

from ling.ops.backend import use_backend
from ling.ops.choice import choose_tokens, gumbel_noise
from ling.ops.fp8 import quantize_e4m3_block, quantize_e4m3_tile, quantize_e4m3_training_block
from ling.ops.linear import grouped_linear
from ling.ops.moe import MoeWeights, moe_layer
from ling.ops.router import RouterRule, choose_experts
from ling.testing.tolerances import SUM_ORDER, assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

MINI_RULE = RouterRule(num_experts_per_tok=8, n_group=8, topk_group=4, routed_scaling_factor=2.5)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_experts_are_chosen_as_on_the_cpu_even_among_ties(backend: str) -> None:
    scores = (torch.rand(500, 256) * 20).round() / 20  # many equal scores
    with use_backend("reference"):
        expected = choose_experts(scores, MINI_RULE)
    with use_backend(backend):
        got = choose_experts(scores.cuda(), MINI_RULE).cpu()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("quantise", [quantize_e4m3_tile, quantize_e4m3_training_block, "fp32", "pow2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantisers_give_the_same_bytes_as_on_the_cpu(quantise, dtype: torch.dtype) -> None:
    x = torch.randn(300, 260).mul(torch.rand(300, 1) * 100).to(dtype)

    def run(values: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(quantise, str):
            return quantize_e4m3_block(values, power_of_two=quantise == "pow2")
        return quantise(values)

    for got, expected in zip(run(x.cuda()), run(x), strict=True):
        assert torch.equal(got.cpu().view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("counts", [[128] * 8, [0, 1, 7, 500, 0, 33, 90, 3], [0, 0, 0, 1024, 0, 0, 0, 0]])
def test_grouped_linear_in_bfloat16(counts: list[int]) -> None:
    rows = torch.randn(sum(counts), 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(len(counts), 512, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    offsets = torch.tensor(counts, device="cuda").cumsum(0).to(torch.int32)
    exact_rows, exact_weights = (t.detach().double().requires_grad_() for t in (rows, weights))
    with use_backend("reference"):
        exact = grouped_linear(exact_rows, exact_weights, offsets)
    exact_grads = torch.autograd.grad(exact.sum(), [exact_rows, exact_weights])
    with use_backend("torch"):
        out = grouped_linear(rows, weights, offsets)
    grads = torch.autograd.grad(out.sum(), [rows, weights])
    for got, expected in zip((out, *grads), (exact, *exact_grads), strict=True):
        assert relative_error(got, expected) < 1e-2


def test_a_mini_sized_layer_in_bfloat16() -> None:
    E, F, H = 256, 512, 2048
    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device="cuda", generator=draw).mul(0.02).to(dtype)

    weights = MoeWeights(
        normal(E, H, dtype=torch.float32), normal(E, dtype=torch.float32), normal(E, 2 * F, H), normal(E, H, F), None
    )
    x = normal(333, H) * 50
    y, routing = moe_layer(x, weights, MINI_RULE)
    exact = MoeWeights(weights.gate, weights.expert_bias, weights.gate_up_proj.float(), weights.down_proj.float(), None)
    with use_backend("reference"):
        expected, expected_routing = moe_layer(x.float(), exact, MINI_RULE)
    assert torch.equal(routing.ids, expected_routing.ids)
    assert relative_error(y, expected) < 1e-2


def test_noise_is_the_same_as_on_the_cpu() -> None:
    ids = torch.arange(4096)
    keys = torch.full_like(ids, 1234567890123456789)
    assert_close(gumbel_noise(keys.cuda(), ids.cuda()).cpu(), gumbel_noise(keys, ids), SUM_ORDER)


def test_tokens_are_chosen_as_on_the_cpu() -> None:
    logits = torch.randn(40, 500, generator=torch.Generator().manual_seed(0)) * 3
    temperatures, keys = [(0.0, 0.7)[i % 2] for i in range(40)], [i << 60 for i in range(40)]
    with use_backend("reference"):
        expected = choose_tokens(logits, temperatures, keys)
    assert choose_tokens(logits.cuda(), temperatures, keys) == expected
