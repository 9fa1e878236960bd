"""Every differentiable op against finite differences in float64, and every float32 twin against its reference."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ling.ops.attention import HeadShape, attention, split_norm_rope, visible_keys
from ling.ops.backend import use_backend
from ling.ops.cross_entropy import IGNORE, linear_cross_entropy
from ling.ops.linear import grouped_linear, linear
from ling.ops.mlp import swiglu_mlp
from ling.ops.moe import MoeWeights, mix_experts, moe_layer
from ling.ops.norm import rms_norm
from ling.ops.paged_attention import BlockStore, HeldBlocks, paged_attention
from ling.ops.ragged import Ragged
from ling.ops.rope import Rope, apply_rope
from ling.ops.router import RouterRule, count_experts, route
from ling.testing.tolerances import SUM_ORDER, assert_close

Case = tuple[Callable[..., Tensor], list[Tensor]]


def make(dtype: torch.dtype, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def rope(dtype: torch.dtype, n: int, half: int) -> Rope:
    angles = torch.arange(n, dtype=torch.float64)[:, None] * torch.linspace(1, 0.1, half, dtype=torch.float64)
    return Rope(angles.cos().to(dtype), angles.sin().to(dtype))


def offsets(*counts: int) -> Tensor:
    return torch.tensor(counts).cumsum(0).to(torch.int32)


RULE = RouterRule(num_experts_per_tok=2, n_group=4, topk_group=2, routed_scaling_factor=2.5)
HEADS = HeadShape(4, 2, 8, 1e-6)
IDS = torch.tensor([[0, 3], [3, 1], [0, 1], [1, 3], [3, 0]])  # expert 2 gets nothing
LABELS = torch.tensor([1, IGNORE, 0, 8, 3])


def case_rms_norm(d: torch.dtype) -> Case:
    return lambda x, w: rms_norm(x, w, 1e-6), [make(d, 0, 3, 2, 8), make(d, 1, 8)]


def case_linear(d: torch.dtype) -> Case:
    return linear, [make(d, 0, 5, 8), make(d, 1, 6, 8), make(d, 2, 6)]


def case_grouped_linear(d: torch.dtype) -> Case:
    return lambda x, w: grouped_linear(x, w, offsets(3, 0, 1, 3)), [make(d, 0, 7, 8), make(d, 1, 4, 4, 8)]


def case_swiglu_mlp(d: torch.dtype) -> Case:
    return swiglu_mlp, [make(d, 0, 5, 8), make(d, 1, 12, 8), make(d, 2, 12, 8), make(d, 3, 8, 12)]


def case_apply_rope(d: torch.dtype) -> Case:
    return lambda x: apply_rope(x, rope(d, 5, 2)), [make(d, 0, 5, 3, 8)]


def case_split_norm_rope(d: torch.dtype) -> Case:
    def run(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
        return torch.cat([x.flatten() for x in split_norm_rope(qkv, q_weight, k_weight, HEADS, rope(d, 5, 2))])

    return run, [make(d, 0, 5, 8, 8), make(d, 1, 8), make(d, 2, 8)]


def case_attention(d: torch.dtype) -> Case:
    rows = Ragged([3, 1, 2])
    return lambda q, k, v: attention(q, k, v, rows, rows), [
        make(d, 0, 6, 4, 8),
        make(d, 1, 6, 2, 8),
        make(d, 2, 6, 2, 8),
    ]


def case_attention_to_longer_keys(d: torch.dtype) -> Case:
    q_rows, k_rows = Ragged([2, 1]), Ragged([4, 3])
    return (
        lambda q, k, v: attention(q, k, v, q_rows, k_rows),
        [make(d, 0, 3, 4, 8), make(d, 1, 7, 2, 8), make(d, 2, 7, 2, 8)],
    )


def case_paged_attention(d: torch.dtype) -> Case:
    """Two sequences of 4 and 3 tokens in blocks of 3, apart; the second has a block it does not need."""
    rows = Ragged([2, 1])
    visible = visible_keys(torch.tensor([2, 1]), torch.tensor([4, 3]), 2, 6)
    held = HeldBlocks(torch.tensor([[4, 1], [2, 0]]), lambda: visible)
    return (
        lambda q, k, v: paged_attention(q, BlockStore(k, v), rows, held),
        [make(d, 0, 3, 4, 8), make(d, 1, 5, 3, 2, 8), make(d, 2, 5, 3, 2, 8)],
    )


def case_route(d: torch.dtype) -> Case:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        routing = route(x, weight, torch.linspace(-0.1, 0.1, 8), RULE)
        return torch.cat([routing.weights.flatten(), routing.logits.logsumexp(1)])

    return run, [make(d, 0, 5, 8), make(d, 1, 8, 8)]


def case_mix_experts(d: torch.dtype) -> Case:
    def run(x: Tensor, mix: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return mix_experts(x, IDS, mix, count_experts(IDS, 4), gate_up, down)

    return run, [make(d, 0, 5, 8), make(d, 1, 5, 2), make(d, 2, 4, 8, 8), make(d, 3, 4, 8, 4)]


def case_moe_layer(d: torch.dtype) -> Case:
    def run(x: Tensor, gate: Tensor, gate_up: Tensor, down: Tensor, *shared: Tensor) -> Tensor:
        y, routing = moe_layer(x, MoeWeights(gate, None, gate_up, down, shared), RULE)
        return y + routing.logits.logsumexp(1, keepdim=True)

    shapes = [(5, 8), (8, 8), (8, 8, 8), (8, 8, 4), (4, 8), (4, 8), (8, 4)]
    return run, [make(d, i, *shape) for i, shape in enumerate(shapes)]


def case_linear_cross_entropy(d: torch.dtype) -> Case:
    return lambda h, w: linear_cross_entropy(h, w, LABELS).total, [make(d, 0, 5, 8), make(d, 1, 9, 8)]


CASES = {name.removeprefix("case_"): build for name, build in globals().items() if name.startswith("case_")}


@pytest.mark.parametrize("backend", ["chosen", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_finite_differences(name: str, backend: str) -> None:
    function, inputs = CASES[name](torch.float64)
    if backend == "reference":
        with use_backend("reference"):
            assert torch.autograd.gradcheck(function, inputs)
    else:
        assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", CASES)
def test_chosen_back_ends_agree_with_the_reference_in_float32(name: str) -> None:
    results = {}
    for backend in ("reference", "chosen"):
        function, inputs = CASES[name](torch.float32)
        if backend == "reference":
            with use_backend("reference"):
                out = function(*inputs)
        else:
            out = function(*inputs)
        upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
        results[backend] = (out, *torch.autograd.grad(out, inputs, upstream))
    for i, (got, expected) in enumerate(zip(results["chosen"], results["reference"], strict=True)):
        assert_close(got, expected, SUM_ORDER, f"{name}, {'output' if i == 0 else f'gradient of input {i - 1}'}")


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    width=st.sampled_from([4, 12, 32]),
    seed=st.integers(0, 99),
)
def test_grouped_linear_takes_any_division_of_rows(counts: list[int], width: int, seed: int) -> None:
    """Empty experts, one-row experts, all rows to one expert, odd totals."""
    results = []
    for backend in ("reference", "torch"):
        rows, weights = (
            make(torch.float32, seed, sum(counts), 8),
            make(torch.float32, seed + 1, len(counts), width, 8),
        )
        with use_backend(backend):
            out = grouped_linear(rows, weights, offsets(*counts))
        results.append((out, *torch.autograd.grad(out.sin().sum(), [rows, weights])))
    for expected, got in zip(*results, strict=True):
        assert_close(got, expected, SUM_ORDER)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_attention_takes_any_pack(lengths: list[int], seed: int) -> None:
    rows, results = Ragged(lengths), []
    for backend in ("reference", "torch"):
        inputs = [make(torch.float32, seed + i, rows.total, heads, 8) for i, heads in enumerate((4, 2, 2))]
        with use_backend(backend):
            out = attention(*inputs, rows, rows)
        results.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    for expected, got in zip(*results, strict=True):
        assert_close(got, expected, SUM_ORDER)
