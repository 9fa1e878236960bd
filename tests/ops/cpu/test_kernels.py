"""Each C twin against the reference: odd shapes, every format, every instruction set that this processor has."""

import pytest
import torch
from tests.ops.cpu.weights import (
    FORMATS,
    MOE_SHAPES,
    SUMS,
    Format,
    MoeShape,
    attention_weights,
    draw,
    moe_weights,
    rounded,
    threads,
    tolerance,
    weight,
)  # fmt: skip
from torch import Tensor

from ling.errors import BackendError
from ling.ops.attention import AttentionWeights, HeadShape, attention_step
from ling.ops.backend import use_backend
from ling.ops.linear import Projection, linear
from ling.ops.mlp import swiglu_mlp
from ling.ops.moe import moe_layer
from ling.ops.norm import rms_norm
from ling.ops.packed import quantize
from ling.ops.paged_attention import BlockStore, HeldBlocks, paged_attention
from ling.ops.ragged import Ragged
from ling.ops.rope import Rope
from ling.testing.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("level")


@pytest.mark.parametrize("format", FORMATS)
def test_products_of_any_shape(format: Format) -> None:
    for M, K, N in ((1, 1, 1), (20, 70, 3), (16, 32, 17), (33, 31, 8), (100, 256, 13)):
        w, x, bias = weight(M, K, format=format), draw(N, K, seed=1), draw(M, seed=2)
        for given in (None, bias):
            got, wanted = both(lambda: linear(x, w, given))  # noqa: B023
            assert_close(got, wanted, tolerance(format), f"({M}, {K}) times {N} rows")
            if format != "float32":  # all that is lost is what the rounding of activations loses
                with use_backend("reference"):
                    assert_close(got, linear(rounded(x), w, given), SUMS, f"({M}, {K}) times {N} rounded rows")


@pytest.mark.parametrize("format", FORMATS)
def test_a_feed_forward(format: Format) -> None:
    for H, F, N in ((32, 16, 1), (70, 33, 9), (128, 512, 4)):
        projections = [weight(F, H, format=format, seed=i) for i in (0, 1)]
        down, x = weight(H, F, format=format, seed=2), draw(N, H, seed=3)
        got, wanted = both(lambda: swiglu_mlp(x, *projections, down))  # noqa: B023
        assert_close(got, wanted, tolerance(format), f"{H}, {F}, {N} rows")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", MOE_SHAPES, ids=lambda s: f"H{s.H} F{s.F} E{s.E}")
def test_a_sparse_layer(shape: MoeShape, format: Format) -> None:
    weights = moe_weights(shape, format)
    for N in (1, 2, 11, 40):
        x = draw(N, shape.H, seed=N)
        (got, routed), (wanted, where) = both(lambda: moe_layer(x, weights, shape.rule))  # noqa: B023
        assert routed.ids.equal(where.ids)
        assert routed.counts.equal(where.counts)
        assert_close(routed.logits, where.logits, SUMS, "logits")
        assert_close(routed.weights, where.weights, SUMS, "mixing weights")
        assert_close(got, wanted, tolerance(format), f"{N} rows")


@pytest.mark.parametrize("format", FORMATS)
def test_all_tokens_may_go_to_one_expert(format: Format) -> None:
    shape = MOE_SHAPES[2]
    bias = torch.zeros(shape.E)
    bias[4] = 5.0
    x = draw(21, shape.H)
    (got, routed), (wanted, _) = both(lambda: moe_layer(x, moe_weights(shape, format, bias=bias), shape.rule))
    assert routed.counts.tolist() == [0, 0, 0, 0, 21, 0, 0, 0, 0]
    assert_close(got, wanted, tolerance(format))


def test_of_equal_scores_the_lowest_index_wins() -> None:
    for shape in MOE_SHAPES:
        weights = moe_weights(shape, "float32", bias=torch.zeros(shape.E))._replace(gate=torch.zeros(shape.E, shape.H))
        (_, routed), (_, wanted) = both(lambda: moe_layer(draw(3, shape.H), weights, shape.rule))  # noqa: B023
        assert routed.ids.equal(wanted.ids)


def test_formats_may_differ_from_matrix_to_matrix() -> None:
    shape = MOE_SHAPES[0]
    packed, plain, small = (moe_weights(shape, format) for format in ("int8", "float32", "int4"))
    mixed = packed._replace(down_proj=small.down_proj, shared=plain.shared)
    x = draw(5, shape.H)
    (got, _), (wanted, _) = both(lambda: moe_layer(x, mixed, shape.rule))
    assert_close(got, wanted, tolerance("int8"))


def test_the_norm_of_any_width() -> None:
    for H in (1, 15, 16, 70, 128):
        x, w = draw(3, H), draw(H, seed=1)
        assert_close(*both(lambda: rms_norm(x, w, 1e-6)), SUMS, f"width {H}")  # noqa: B023


@pytest.mark.parametrize("format", FORMATS)
def test_the_attention_sub_layer(format: Format) -> None:
    for heads, H, rotated, options in (
        (HeadShape(4, 2, 32, 1e-6), 128, 16, {}),
        (HeadShape(3, 1, 16, 1e-6), 70, 16, {"bias": True}),
        (HeadShape(2, 2, 10, 1e-6), 32, 6, {"norm": False}),
    ):
        weights = attention_weights(H, heads, format, **options)
        for N in (1, 7):
            x, angles = draw(N, H), draw(N, rotated // 2, seed=8)
            rope = Rope(angles.cos(), angles.sin())
            got, wanted = both(lambda: attention_step(x, weights, heads, rope, mixes_all))  # noqa: B023
            assert_close(got, wanted, tolerance(format), f"{heads}, {N} rows")


def mixes_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stand in for attention: uses all three."""
    per_head = q.shape[1] // k.shape[1]
    return q * k.repeat_interleave(per_head, 1) + v.repeat_interleave(per_head, 1)


@pytest.mark.parametrize("heads", [(4, 2, 16), (2, 2, 32), (5, 1, 48), (16, 4, 128)], ids=str)
def test_attention_to_blocks_of_any_order_and_length(heads: tuple[int, int, int]) -> None:
    A, K, D = heads
    for lengths in ([(1, 1, 0)], [(1, 300, 0)], [(9, 9, 0), (1, 40, 3)], [(5, 270, 0), (2, 600, 257), (1, 256, 0)]):
        q, store, rows, held = paged(lengths, A, K, D)
        got, wanted = both(lambda: paged_attention(q, store, rows, held))  # noqa: B023
        assert_close(got, wanted, SUMS, f"{lengths}")


def paged(lengths: list[tuple[int, int, int]], A: int, K: int, D: int) -> tuple[Tensor, BlockStore, Ragged, HeldBlocks]:
    """Lay sequences of (new, held, first) out in blocks of 16 in any order."""
    width = -(-max(held for _, held, _ in lengths) // 16)
    blocks = torch.randperm(len(lengths) * width + 3, generator=torch.Generator().manual_seed(1))
    tables = blocks[: len(lengths) * width].view(len(lengths), width).contiguous()
    store = BlockStore(draw(len(blocks), 16, K, D, seed=2), draw(len(blocks), 16, K, D, seed=3))
    rows = Ragged([new for new, _, _ in lengths])
    visible = torch.zeros(len(lengths), rows.longest, width * 16, dtype=torch.bool)
    for b, (new, held, first) in enumerate(lengths):
        for i in range(new):
            visible[b, i, first : held - new + i + 1] = True
    spans = torch.tensor(lengths)
    return draw(rows.total, A, D, seed=4), store, rows, HeldBlocks(tables, lambda: visible, spans=spans)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_a_number_stays_so(format: Format) -> None:
    shape = MOE_SHAPES[0]
    for bad in (torch.nan, torch.inf):
        x = draw(3, shape.H)
        x[1, 5] = bad
        with use_backend("cpu"):
            y, routed = moe_layer(x, moe_weights(shape, format), shape.rule)
            product = linear(x, weight(20, shape.H, format=format))
        assert not bool(y[1].isfinite().any())
        assert not bool(product[1].isfinite().any())
        assert bool(y[::2].isfinite().all())
        assert bool(((routed.ids >= 0) & (routed.ids < shape.E)).all())


def test_memory_that_begins_anywhere() -> None:
    memory = draw(1 + 3 * 70)
    x, w = memory[1:].view(3, 70), quantize(draw(20, 70), "int8")
    with use_backend("cpu"):
        assert linear(x, w).equal(linear(x.clone(), w))
        assert linear(draw(70, 3).T, w).equal(
            linear(draw(70, 3).T.contiguous(), w)
        )  # rows that do not lie in one piece


def test_a_twin_says_why_it_cannot() -> None:
    w = quantize(draw(16, 32), "int8")
    with use_backend("cpu"):
        with pytest.raises(BackendError, match=r"activations are torch.bfloat16"):
            linear(draw(2, 32).bfloat16(), w)
        with pytest.raises(BackendError, match="weights are Projection"):
            linear(draw(2, 32), Projection(lambda x: x))
        with torch.enable_grad(), pytest.raises(BackendError, match="gradients are wanted"):
            linear(draw(2, 32).requires_grad_(), w)
        heads = HeadShape(2, 1, 10, 1e-6)
        weights: AttentionWeights = attention_weights(32, heads, "int8")._replace(key_layernorm=None)
        with pytest.raises(BackendError, match="only one of queries and keys"):
            attention_step(draw(1, 32), weights, heads, Rope(draw(1, 2), draw(1, 2)), mixes_all)


def both(run):  # type: ignore[no-untyped-def]
    """Return what the C twin and the reference give."""
    with use_backend("cpu"), threads(1):
        got = run()
    with use_backend("reference"):
        return got, run()
