"""All layers of a model, and the norm behind them, in one call: what decoding spends between layers is spent once.

The same functions in the same order as when each sub-layer is a call of its own, so results are equal bit for bit.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ling.ops.attention import AttentionWeights, HeadShape
from ling.ops.cpu import attention, mlp, moe, paged_attention
from ling.ops.cpu import library as lib
from ling.ops.linear import Projection, Weight
from ling.ops.moe import MoeWeights
from ling.ops.paged_attention import BlockStore
from ling.ops.rope import Rope
from ling.ops.router import RouterRule

if TYPE_CHECKING:
    from ling.ops.paged_attention import HeldBlocks


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer: `feed_forward` are gate, up and down of a dense one, or experts with their rule."""

    input_norm: Tensor
    attention: AttentionWeights
    heads: HeadShape
    store: BlockStore
    post_norm: Tensor
    feed_forward: tuple[Weight | Projection, ...] | tuple[MoeWeights, RouterRule]


@dataclass(frozen=True, slots=True)
class JoinWeights:
    """What an MTP layer begins with."""

    embedding_norm: Tensor
    hidden_norm: Tensor
    projection: Weight | Projection


class CLayer(ctypes.Structure):
    """`Layer` of kernels.h."""

    _fields_ = [
        ("input_norm", ctypes.c_void_p),
        ("post_norm", ctypes.c_void_p),
        ("heads", attention.CHeads),
        ("dense", lib.CMatrix),
        ("dense_bias", ctypes.c_void_p),
        ("cache", paged_attention.CPaged),
        ("moe", moe.CMoe),
        ("mlp", mlp.CMlp),
    ]


class CStack(ctypes.Structure):
    """`Stack` of kernels.h."""

    _fields_ = [
        ("embedding_norm", ctypes.c_void_p),
        ("hidden_norm", ctypes.c_void_p),
        ("join", lib.CMatrix),
        ("layers", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("H", ctypes.c_int64),
        ("final_norm", ctypes.c_void_p),
        ("eps", ctypes.c_double),
    ]


class CStep(ctypes.Structure):
    """`Step` of kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("hidden", "cos", "sin", "slots", "tables", "spans")),
        ("B", ctypes.c_int64),
        ("T", ctypes.c_int64),
    ]


class Stack:
    """Layers described once, for a model whose weights stay where they are; values may change in place.

    rotated  channels of each head that turn
    """

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        final_norm: Tensor,
        eps: float,
        rotated: int,
        join: JoinWeights | None = None,
    ) -> None:
        H = final_norm.numel()
        self._held = (layers, final_norm, join)  # what is pointed to stays
        self._layers = (CLayer * len(layers))(*(_describe_layer(layer, H, rotated) for layer in layers))
        fields = (0, 0, lib.CMatrix()) if join is None else _describe_join(join, H)
        self._stack = CStack(*fields, ctypes.addressof(self._layers), len(layers), H, final_norm.data_ptr(), eps)
        self._address = ctypes.addressof(self._stack)
        self._rotated = rotated
        self._H = H

    def run(
        self, x: Tensor, rope: Rope, slots: Tensor, held: "HeldBlocks", hidden: Tensor | None = None
    ) -> tuple[Tensor, bool]:
        """Run all layers over new rows of some sequences.

        x       (N, H) float32 embeddings
        slots   (N,) int64 of the store, where the new keys and values go
        held    its tables and spans say what the rows see
        hidden  (N, H) that an MTP layer joins with them
        return  (N, H) behind the final norm, and whether it is finite
        """
        N = x.shape[0]
        assert x.shape == (N, self._H), (x.shape, self._H)
        assert x.dtype == torch.float32, x.dtype
        assert rope.cos.shape == rope.sin.shape == (N, self._rotated // 2), (rope.cos.shape, N)
        assert slots.shape == (N,), slots.shape
        assert held.spans is not None
        assert (hidden is not None) == (self._held[2] is not None), "an MTP layer, and only one, joins hidden states"
        assert hidden is None or hidden.shape == x.shape, (hidden.shape, x.shape)
        x, cos, sin = x.contiguous(), rope.cos.contiguous(), rope.sin.contiguous()
        hidden = None if hidden is None else hidden.contiguous()
        y = torch.empty_like(x)
        pointers = [lib.address(part) for part in (hidden, cos, sin, slots, held.tables, held.spans)]
        step = CStep(*pointers, *held.tables.shape)
        found = lib.opened().stack(
            x.data_ptr(), y.data_ptr(), N, torch.get_num_threads(), self._address, ctypes.byref(step)
        )
        if found != _NOT_FINITE:
            lib.check(found)
        return y, found != _NOT_FINITE


_NOT_FINITE = 2


def why_not(layers: Sequence[LayerWeights], final_norm: Tensor, join: JoinWeights | None = None) -> str | None:
    """Why these layers cannot run in one call, or None."""
    reason = lib.missing() or lib.why_not_values(final_norm)
    for layer in layers:
        reason = reason or _why_not_layer(layer)
    if join is not None:
        reason = reason or lib.why_not_weight(join.projection)
        reason = reason or lib.why_not_values(join.embedding_norm) or lib.why_not_values(join.hidden_norm)
    return reason


def rather_not(rows: int, longest: int, layers: Sequence[LayerWeights]) -> str | None:
    """Why calls by sub-layer, some of them torch's, are faster for so many rows, or None; `longest` of one sequence."""
    some = torch.empty(rows, 0)
    for layer in layers:
        routed = layer.feed_forward[0].gate_up_proj if isinstance(layer.feed_forward[0], MoeWeights) else None
        for weight in (layer.attention.query_key_value, layer.feed_forward[0] if routed is None else routed):
            if reason := lib.many_floats(some, weight):
                return reason
    return paged_attention.rather_not_rows(longest)


def _why_not_layer(layer: LayerWeights) -> str | None:
    weights = layer.attention
    values = (
        layer.input_norm, layer.post_norm, weights.query_key_value_bias, weights.dense_bias,
        weights.query_layernorm, weights.key_layernorm,
    )  # fmt: skip
    reason = lib.why_not_weight(weights.query_key_value) or lib.why_not_weight(weights.dense)
    reason = reason or paged_attention.why_not_store(layer.heads.A, layer.heads.D, layer.store)
    if (weights.query_layernorm is None) != (weights.key_layernorm is None):
        reason = reason or "only one of queries and keys is normalised"
    for tensor in values:
        reason = reason or lib.why_not_values(tensor)
    feed_forward = layer.feed_forward
    if isinstance(feed_forward[0], MoeWeights):
        return reason or moe.why_not_weights(feed_forward[0])
    return reason or mlp.why_not_weights(*feed_forward)


def _describe_layer(layer: LayerWeights, H: int, rotated: int) -> CLayer:
    weights, heads = layer.attention, layer.heads
    rows = weights.dense.shape[0]  # type: ignore[union-attr]
    assert rows == H, (rows, H)
    routed, dense = moe.CMoe(), mlp.CMlp()
    if isinstance(layer.feed_forward[0], MoeWeights):
        routed = moe.describe(layer.feed_forward[0], H, layer.feed_forward[1]).contents
    else:
        dense = mlp.describe(*layer.feed_forward).contents
    return CLayer(
        layer.input_norm.data_ptr(),
        layer.post_norm.data_ptr(),
        attention.describe(weights, heads, H, rotated).contents,
        lib.CMatrix(*lib.fields(weights.dense, H)),  # type: ignore[arg-type]
        lib.address(weights.dense_bias),
        paged_attention.describe_store(layer.store, heads.A),
        routed,
        dense,
    )


def _describe_join(join: JoinWeights, H: int) -> tuple[int, int, lib.CMatrix]:
    assert join.projection.shape == (H, 2 * H), (join.projection.shape, H)  # type: ignore[union-attr]
    matrix = lib.CMatrix(*lib.fields(join.projection, H))  # type: ignore[arg-type]
    return join.embedding_norm.data_ptr(), join.hidden_norm.data_ptr(), matrix
