"""All layers of a model, and the norm behind them, in one call: what decoding spends between layers is spent once.

The same functions in the same order as when each sub-layer is a call of its own, so results are equal bit for bit.
"""

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ling.ops.cpu import library as lib
from ling.ops.cpu import mlp, moe, paged_attention
from ling.ops.cpu.shortlist import Shortlist
from ling.ops.cpu.stack_structs import (
    CDrafts,
    CLayer,
    CStack,
    CStep,
    JoinWeights,
    LayerWeights,
    describe_join,
    describe_layer,
)
from ling.ops.linear import Weight
from ling.ops.moe import MoeWeights
from ling.ops.rope import Rope

_EMBEDDINGS = (torch.float32, torch.bfloat16)
_NO_LIMIT = 2**62
_PRODUCTS_OF_CALLS = 2**25
"""What torch computes faster in a layer before its many calls have paid for themselves."""


class NewRows(NamedTuple):
    """New tokens of B sequences, one after another; N of them in all.

    tokens  (N,) the rows' own
    tables  (B, T) blocks of each sequence
    spans   (B, 3) new rows, tokens held with them, the first slot that is seen
    """

    tokens: "array[int]"
    tables: "array[int]"
    spans: "array[int]"


class Stack:
    """Layers described once, for a model whose weights stay where they are; values may change in place.

    embedding  (V, H) float32 or bfloat16
    rope       of every position
    """

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        final_norm: Tensor,
        eps: float,
        embedding: Tensor,
        rope: Rope,
        join: JoinWeights | None = None,
    ) -> None:
        H, (positions, half) = final_norm.numel(), rope.cos.shape
        assert embedding.shape[1] == H, (embedding.shape, H)
        assert rope.sin.shape == rope.cos.shape, (rope.sin.shape, rope.cos.shape)
        self._held = (layers, final_norm, embedding, rope, join)  # what is pointed to stays
        self._layers = (CLayer * len(layers))(*(describe_layer(layer, H, 2 * half) for layer in layers))
        self._stack = CStack(
            *((0, 0, lib.CMatrix()) if join is None else describe_join(join, H)),
            ctypes.addressof(self._layers), len(layers), H, final_norm.data_ptr(), eps,
            embedding.data_ptr(), len(embedding), paged_attention.KINDS[embedding.dtype],
            rope.cos.data_ptr(), rope.sin.data_ptr(), positions, 2 * half, 0 if join is None else 1,
        )  # fmt: skip
        self._address = ctypes.addressof(self._stack)
        self._joins = join is not None
        self._H = H

    def run(self, rows: NewRows, hidden: Tensor | None = None) -> tuple[Tensor, bool]:
        """Run all layers over new rows of some sequences, whose keys and values go into the cache.

        hidden  (N, H) float32 that an MTP layer joins with them; its rows turn as the slot before theirs
        return  (N, H) behind the final norm, and whether it is finite
        Raises IndexError where a token is not in the vocabulary or a slot beyond the rotations.
        """
        N = len(rows.tokens)
        assert (hidden is not None) == self._joins, "an MTP layer, and only one, joins hidden states"
        y = torch.empty(N, self._H)
        step = self._describe_step(rows, hidden)
        found = lib.opened().stack(y.data_ptr(), N, torch.get_num_threads(), self._address, ctypes.byref(step))
        if found != lib.NOT_FINITE:
            lib.check(found)
        return y, found != lib.NOT_FINITE

    def propose(
        self,
        rows: NewRows,
        hidden: Tensor,
        head: Weight | Shortlist,
        temperatures: "array[float]",
        keys: "array[int]",
    ) -> list[list[int]]:
        """Run an MTP layer as `run`, then choose drafts behind the first sequences, each behind the one before it.

        rows          tables must have room for as many slots more
        head          (V, H), or it with its sketch
        temperatures  (count,) float32, as `ops.choice` takes them
        keys          (most, count) uint64
        return        `most` tokens for each of `count` sequences
        """
        count = len(temperatures)
        most = len(keys) // count
        hidden, chosen = hidden.contiguous(), array("q", bytes(8 * count * most))
        sketch, read_again = head.address(most) if isinstance(head, Shortlist) else (0, 0)
        weight = head.weight if isinstance(head, Shortlist) else head
        matrix = lib.CMatrix(*lib.fields(weight, weight.shape[0]))
        drafts = CDrafts(
            ctypes.addressof(matrix), sketch, _address(temperatures), _address(keys), count, most, read_again
        )
        step = self._describe_step(rows, hidden)
        asked = (self._address, ctypes.byref(step), ctypes.byref(drafts), _address(chosen))
        lib.check(lib.opened().propose(len(rows.tokens), torch.get_num_threads(), *asked))
        return [chosen[i : i + most].tolist() for i in range(0, count * most, most)]

    def _describe_step(self, rows: NewRows, hidden: Tensor | None) -> CStep:
        assert hidden is None or hidden.shape == (len(rows.tokens), self._H), (hidden.shape, len(rows.tokens), self._H)
        assert hidden is None or hidden.is_contiguous(), hidden.stride()
        B = len(rows.spans) // 3
        return CStep(lib.address(hidden), *map(_address, rows), B, len(rows.tables) // B)


def _address(values: "array[Any]") -> int:
    return values.buffer_info()[0]


def why_not(
    layers: Sequence[LayerWeights], final_norm: Tensor, embedding: Tensor, rope: Rope, join: JoinWeights | None = None
) -> str | None:
    """Why these layers cannot run in one call, or None."""
    reason = lib.missing() or lib.why_not_values(final_norm) or lib.why_not_values(rope.cos)
    if embedding.dtype not in _EMBEDDINGS or not embedding.is_cpu or not embedding.is_contiguous():
        reason = reason or f"embeddings are {embedding.dtype} on {embedding.device}, or not contiguous"
    for layer in layers:
        reason = reason or _why_not_layer(layer)
    if join is not None:
        reason = reason or lib.why_not_weight(join.projection)
        reason = reason or lib.why_not_values(join.embedding_norm) or lib.why_not_values(join.hidden_norm)
    return reason


def most_rows(layers: Sequence[LayerWeights]) -> int:
    """Return up to how many rows one call is faster than calls by sub-layer, some of them torch's.

    Only products of float32 are ever faster there, and calls by sub-layer cost as much as some millions of those.
    """
    products = [_float_products(layer) for layer in layers]
    if not any(products):
        return _NO_LIMIT
    if lib.opened().level == "plain":
        return lib.FEW_ROWS
    return max(lib.FEW_ROWS, _PRODUCTS_OF_CALLS * len(layers) // sum(products))


def _float_products(layer: LayerWeights) -> int:
    """Return the multiplications of float32 that a row takes in a layer."""
    matrices: list[tuple[object, float]] = [(layer.attention.query_key_value, 1), (layer.attention.dense, 1)]
    routed = layer.feed_forward[0]
    if isinstance(routed, MoeWeights):
        share = layer.feed_forward[1].num_experts_per_tok / len(routed.gate)  # type: ignore[union-attr]
        matrices += [(routed.gate_up_proj, share), (routed.down_proj, share), *((w, 1) for w in routed.shared or ())]
    else:
        matrices += [(weight, 1) for weight in layer.feed_forward]
    return int(sum(weight.numel() * share for weight, share in matrices if isinstance(weight, Tensor)))


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
