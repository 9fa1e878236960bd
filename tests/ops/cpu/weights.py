"""Sub-layers of odd shapes in every weight format, and what their results may be off by."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ling.ops.attention import AttentionWeights, HeadShape
from ling.ops.cpu.library import library
from ling.ops.linear import Weight
from ling.ops.moe import MoeWeights
from ling.ops.packed import GROUP, quantize
from ling.ops.router import RouterRule
from ling.testing.tolerances import Tolerance

Format = Literal["float32", "int8", "int4"]
FORMATS: tuple[Format, ...] = ("float32", "int8", "int4")

SUMS = Tolerance(1e-6, 2e-5, "float32 sums in another order")
CODES = Tolerance(1e-6, 4e-2, "activations are rounded to int8 per 32: 0.4 % of a group's largest, several times over")


def tolerance(format: Format) -> Tolerance:
    return SUMS if format == "float32" else CODES


def rounded(x: Tensor) -> Tensor:
    """Round activations as the kernels do before a packed product."""
    K = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -K % GROUP)).unflatten(-1, (-1, GROUP))
    most = groups.abs().amax(-1, keepdim=True)
    codes = (groups * torch.where(most > 0, 127 / most, 0.0)).round()
    return (codes * (most / 127)).flatten(-2)[..., :K]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(*shape: int, format: Format, seed: int = 0, rows: tuple[int, ...] | None = None) -> Weight:
    values = 0.1 * draw(*shape, seed=seed)
    return values if format == "float32" else quantize(values, format, rows)


class MoeShape(NamedTuple):
    H: int
    F: int
    E: int
    rule: RouterRule
    shared: int


MOE_SHAPES = (
    MoeShape(128, 32, 64, RouterRule(2, 8, 4, 2.5), 96),
    MoeShape(64, 48, 16, RouterRule(4, 4, 2, 1.0), 0),
    MoeShape(70, 20, 9, RouterRule(1, 1, 1, 2.5), 33),
    MoeShape(32, 16, 8, RouterRule(8, 0, 0, 2.5), 16),
)


def moe_weights(shape: MoeShape, format: Format, *, bias: Tensor | None = None) -> MoeWeights:
    H, F, E, _, S = shape
    shared = None
    if S:
        projections = [weight(S, H, format=format, seed=i) for i in (5, 6)]
        shared = (projections[0], projections[1], weight(H, S, format=format, seed=7))
    return MoeWeights(
        0.1 * draw(E, H, seed=1),
        0.05 * draw(E, seed=2) if bias is None else bias,
        weight(E, 2 * F, H, format=format, seed=3, rows=(F, F)),
        weight(E, H, F, format=format, seed=4),
        shared,
    )


def attention_weights(
    H: int, heads: HeadShape, format: Format, *, norm: bool = True, bias: bool = False
) -> AttentionWeights:
    A, K, D, _ = heads
    return AttentionWeights(
        weight((A + 2 * K) * D, H, format=format, seed=1),
        0.1 * draw((A + 2 * K) * D, seed=2) if bias else None,
        1 + 0.1 * draw(D, seed=3) if norm else None,
        1 + 0.1 * draw(D, seed=4) if norm else None,
        weight(H, A * D, format=format, seed=5),
        0.1 * draw(H, seed=6) if bias else None,
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def levels() -> list[str]:
    """Return the instruction sets of this processor, as the library finds them."""
    found = library()
    assert found is not None, "the C library was not built"
    return {"avx512": ["avx512", "avx2", "plain"], "avx2": ["avx2", "plain"], "plain": ["plain"]}[found.level]
