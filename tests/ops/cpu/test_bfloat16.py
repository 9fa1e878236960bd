"""Matrices of bfloat16 values give the bits that the same values give in float32, on every instruction set."""

import pytest
import torch
from tests.ops.cpu.weights import FORMATS, MOE_SHAPES, Format, MoeShape, draw, moe_weights, threads
from torch import Tensor

from ling.errors import BackendError
from ling.ops.backend import use_backend
from ling.ops.cpu import linear as linear_twin
from ling.ops.cpu import moe as moe_twin
from ling.ops.linear import linear
from ling.ops.moe import MoeWeights, moe_layer


def narrow(*shape: int, seed: int = 0) -> Tensor:
    return (0.1 * draw(*shape, seed=seed)).bfloat16()


@pytest.mark.usefixtures("level")
def test_products_of_any_shape_and_number_of_rows() -> None:
    for M, K in ((1, 1), (20, 70), (16, 32), (33, 31), (17, 512), (40, 1100)):
        w, bias = narrow(M, K), draw(M, seed=2)
        for N in range(1, 21):
            x = draw(N, K, seed=N)
            got, wanted = (linear_twin.project(x, weight, bias, M) for weight in (w, w.float()))
            assert got.equal(wanted), f"({M}, {K}) times {N} rows"
            assert torch.allclose(got, x @ w.float().T + bias, atol=1e-4), f"({M}, {K}) times {N} rows"


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", MOE_SHAPES, ids=lambda s: f"H{s.H} F{s.F} E{s.E}")
def test_a_router(shape: MoeShape, format: Format) -> None:
    weights = moe_weights(shape, format)._replace(gate=narrow(shape.E, shape.H, seed=1))
    for N in (1, 2, 11):
        assert_the_same(draw(N, shape.H, seed=N), weights, weights._replace(gate=weights.gate.float()), shape)


@pytest.mark.usefixtures("level")
def test_stacks_of_experts() -> None:
    shape = MOE_SHAPES[2]
    values = moe_weights(shape, "float32")
    assert values.shared is not None
    given = [values.gate_up_proj, values.down_proj, *values.shared]
    held = [narrow(*w.shape, seed=i) for i, w in enumerate(given)]  # type: ignore[union-attr]
    ours, theirs = (
        values._replace(gate_up_proj=w[0], down_proj=w[1], shared=(w[2], w[3], w[4]))
        for w in (held, [w.float() for w in held])
    )
    for N in (1, 13):
        got, wanted = (moe_twin.forward(draw(N, shape.H, seed=N), w, shape.rule)[0] for w in (ours, theirs))
        assert got.equal(wanted), f"{N} rows"


@pytest.mark.parametrize(("backend", "format"), [("torch", "float32"), ("reference", "int4")])
def test_a_router_without_the_library(backend: str, format: Format) -> None:
    shape = MOE_SHAPES[0]
    weights = moe_weights(shape, format)._replace(gate=narrow(shape.E, shape.H, seed=1))
    with use_backend(backend):
        for N in (1, 9):
            wide = weights._replace(gate=weights.gate.float())
            (got, routed), (wanted, where) = (moe_layer(draw(N, shape.H), w, shape.rule) for w in (weights, wide))
            assert got.equal(wanted)
            assert all(a.equal(b) for a, b in zip(routed, where, strict=True))


def test_other_products_take_no_bfloat16() -> None:
    with use_backend("cpu"), pytest.raises(BackendError, match=r"weights are torch.bfloat16"):
        linear(draw(2, 32), narrow(16, 32))


def assert_the_same(x: Tensor, ours: MoeWeights, theirs: MoeWeights, shape: MoeShape) -> None:
    with use_backend("cpu"), torch.no_grad(), threads(1):
        (got, routed), (wanted, where) = moe_layer(x, ours, shape.rule), moe_layer(x, theirs, shape.rule)
    assert got.equal(wanted), f"{len(x)} rows"
    for name, a, b in zip(where._fields, routed, where, strict=True):
        assert a.equal(b), f"{name} of {len(x)} rows"
