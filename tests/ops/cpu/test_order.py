"""One order of operations: the same bits for one row or many, for any number of threads, on AVX2 and AVX-512."""

from collections.abc import Callable

import pytest
import torch
from tests.ops.cpu.test_kernels import mixes_all, paged
from tests.ops.cpu.weights import (
    FORMATS,
    MOE_SHAPES,
    Format,
    attention_weights,
    draw,
    levels,
    moe_weights,
    threads,
    weight,
)
from torch import Tensor

from ling.ops.attention import HeadShape, attention_step
from ling.ops.backend import use_backend
from ling.ops.cpu import library as lib
from ling.ops.linear import linear
from ling.ops.mlp import swiglu_mlp
from ling.ops.moe import moe_layer
from ling.ops.norm import rms_norm
from ling.ops.paged_attention import paged_attention
from ling.ops.rope import Rope

N, H = 37, 128


def sub_layers(format: Format) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return functions of rows (n, 128) and their angles (n, 8)."""
    square, gate, up, down = (
        weight(*shape, format=format, seed=i) for i, shape in enumerate(((H, H), (80, H), (80, H), (H, 80)))
    )
    heads = HeadShape(4, 2, 32, 1e-6)
    attention, moe, shape = attention_weights(H, heads, format), moe_weights(MOE_SHAPES[0], format), MOE_SHAPES[0]
    return {
        "product": lambda x, _: linear(x, square),
        "feed-forward": lambda x, _: swiglu_mlp(x, gate, up, down),
        "sparse layer": lambda x, _: moe_layer(x, moe, shape.rule)[0],
        "attention": lambda x, a: attention_step(x, attention, heads, Rope(a.cos(), a.sin()), mixes_all),
        "norm": lambda x, _: rms_norm(x, draw(H, seed=9), 1e-6),
    }


@pytest.fixture(autouse=True)
def many_threads(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    with torch.no_grad(), use_backend("cpu"):
        yield


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_is_the_same_alone_and_among_others(format: Format) -> None:
    x, angles = draw(N, H), draw(N, 8, seed=1)
    for name, apply in sub_layers(format).items():
        together = apply(x, angles)
        for n in range(1, 12):
            for start in (0, 3, N - n):
                part = apply(x[start : start + n], angles[start : start + n])
                assert part.equal(together[start : start + n]), f"{name} of rows {start} to {start + n}"


@pytest.mark.parametrize("format", FORMATS)
def test_threads_change_nothing(format: Format) -> None:
    x, angles = draw(4 * N, H), draw(4 * N, 8, seed=1)
    for name, apply in sub_layers(format).items():
        alone = apply(x, angles)
        for count in (2, 3, 8):
            with threads(count):
                assert apply(x, angles).equal(alone), f"{name} with {count} threads"


def test_attention_is_the_same_token_by_token_and_in_chunks() -> None:
    """And however the keys are shared out between threads."""
    A, K, D = 8, 2, 64
    q, store, rows, held = paged([(19, 1300, 0), (3, 40, 0), (6, 700, 300)], A, K, D)
    together = paged_attention(q, store, rows, held)
    row = 0
    for b, (new, total, first) in enumerate(held.spans.tolist()):  # type: ignore[union-attr]
        for i in range(new):
            for count in (1, 4):
                one = paged([(1, total - new + i + 1, first)], A, K, D)
                one[3].tables = held.tables[b : b + 1].contiguous()
                with threads(count):
                    alone = paged_attention(q[row : row + 1], store, one[2], one[3])
                assert alone.equal(together[row : row + 1]), (b, i, count)
            row += 1


@pytest.mark.skipif("avx512" not in levels(), reason="this processor has one vector instruction set")
def test_both_vector_instruction_sets_give_the_same_bits() -> None:
    x, angles = draw(N, H), draw(N, 8, seed=1)
    for format in FORMATS:
        for name, apply in sub_layers(format).items():
            wanted = apply(x, angles)
            with lib.opened().at_level("avx2"):
                assert apply(x, angles).equal(wanted), f"{name} in {format}"
