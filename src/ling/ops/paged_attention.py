"""Attention from new tokens to what a cache of blocks holds of their sequences."""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.backend import coarse_op, op
from ling.ops.fp8 import E4M3_MAX
from ling.ops.precision import at_least_float32
from ling.ops.ragged import Ragged


class BlockStore(NamedTuple):
    """Keys and values of one layer, in blocks of P tokens; E4M3 codes where there are scales."""

    keys: Tensor
    """(blocks, P, K, D), in a type of their own: activations are rounded to it when they are written."""
    values: Tensor
    key_scale: Tensor | None = None
    """(blocks, P, K) float32, what codes are multiplied by."""
    value_scale: Tensor | None = None


class HeldBlocks:
    """Where B sequences lie in a store, and what their new rows see.

    tables       (B, T) int64: the blocks of each sequence in order, any block behind them
    see          makes `visible`: (B, n, T * P) bool, n the most new rows of a sequence
    run          the first block, where there is one sequence whose blocks lie side by side
    num_visible  where one row of one sequence sees just the first so many tokens, their number: no mask is needed
    spans        of each sequence the new rows, the tokens held, the first one that is seen: (B, 3) int64. Row i sees
                 that one up to its own, held - new + i; None: some other mask
    """

    def __init__(
        self,
        tables: Tensor,
        see: Callable[[], Tensor],
        *,
        run: int | None = None,
        num_visible: int = 0,
        spans: Tensor | None = None,
    ) -> None:
        self.tables = tables
        self.run = run
        self.num_visible = num_visible
        self.spans = spans
        self._see = see

    @cached_property
    def visible(self) -> Tensor:
        """Made when first asked for, once for all layers."""
        return self._see()


@coarse_op(cpu="ling.ops.cpu.paged_step")
def paged_step(
    q: Tensor, k: Tensor, v: Tensor, flat: BlockStore, slots: Tensor, store: BlockStore, rows: Ragged, held: HeldBlocks
) -> Tensor:
    """Put the new keys and values into the store, then attend.

    q       (N, A, D)  new rows of B sequences; k, v (N, K, D)
    flat    the store without its division into blocks: (blocks * P, K, D)
    slots   (N,) int64, where in `flat` they go
    return  (N, A, D)
    """
    write(flat, slots, k, v)
    return paged_attention(q, store, rows, held)


def write(flat: BlockStore, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Put keys and values (N, K, D) into `slots` (N,) of a store without its division into blocks."""
    if flat.key_scale is None or flat.value_scale is None:
        flat.keys.index_copy_(0, slots, k.to(flat.keys.dtype))
        flat.values.index_copy_(0, slots, v.to(flat.values.dtype))
        return
    for x, codes, scale in ((k, flat.keys, flat.key_scale), (v, flat.values, flat.value_scale)):
        largest = x.float().abs().amax(-1).clamp_min(1e-12)
        own = largest / E4M3_MAX
        quantized = (x.float() / own[..., None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        codes.view(torch.uint8).index_copy_(0, slots, quantized.view(torch.uint8))
        scale.index_copy_(0, slots, own)


@op(
    cpu="ling.ops.cpu.paged_attention",
    triton="ling.ops.triton.paged_attention",
    torch="ling.ops.torch.paged_attention",
    invariant="ling.ops.invariant.paged_attention",
)
def paged_attention(q: Tensor, store: BlockStore, rows: Ragged, held: HeldBlocks) -> Tensor:
    """Attend from the newest tokens of B sequences, whose keys and values the store already holds.

    q       (N, A, D)  new rows of B sequences
    return  (N, A, D)

    Query heads share key-value heads contiguously. Scores are scaled by 1 / sqrt(D); softmax in float32.
    """
    keys, values = gather(store, held, q.dtype)
    per_kv_head = q.shape[1] // keys.shape[2]
    outputs = []
    for qs, ks, vs, mask in zip(q.split(rows.lengths), keys, values, held.visible):
        ks, vs = ks.repeat_interleave(per_kv_head, 1), vs.repeat_interleave(per_kv_head, 1)
        scores = torch.einsum("nad,mad->anm", qs, ks) * q.shape[2] ** -0.5
        scores = at_least_float32(scores).masked_fill(~mask[: len(qs)], -torch.inf)
        outputs.append(torch.einsum("anm,mad->nad", scores.softmax(-1).to(q.dtype), vs))
    return torch.cat(outputs)


def gather(store: BlockStore, held: HeldBlocks, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return keys and values (B, T * P, K, D) in `dtype`; a view where the blocks lie side by side."""
    B, T = held.tables.shape
    index = held.tables.flatten()

    def pick(blocks: Tensor) -> Tensor:
        if held.run is not None:
            return blocks[held.run : held.run + T].flatten(0, 1)[None]
        return blocks.index_select(0, index).unflatten(0, (B, T)).flatten(1, 2)

    keys, values = pick(store.keys), pick(store.values)
    if store.key_scale is not None and store.value_scale is not None:
        keys = keys.to(dtype) * pick(store.key_scale)[..., None].to(dtype)
        values = values.to(dtype) * pick(store.value_scale)[..., None].to(dtype)
    return keys.to(dtype), values.to(dtype)
