"""Attention from new tokens to what a cache of blocks holds of their sequences."""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.precision import at_least_float32
from ling.ops.ragged import Ragged


class BlockStore(NamedTuple):
    """Keys and values of one layer, in blocks of P tokens; E4M3 codes where there are scales."""

    keys: Tensor
    """(blocks, P, K, D)."""
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


@op(
    cpu="ling.ops.cpu.paged_attention",
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
    return keys, values
