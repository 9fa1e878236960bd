"""Keys and values of the tokens already seen: one contiguous strip per sequence and layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ling.config import ModelConfig
from ling.ops.attention import cached_attention, visible_keys
from ling.ops.ragged import Ragged


class KVCache:
    """Room for `slots` sequences of `max_tokens` tokens in every stored layer (MTP layers included)."""

    def __init__(
        self, model: ModelConfig, slots: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (model.num_stored_layers, slots, max_tokens, model.num_key_value_heads, model.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class CachedBatch:
    """New tokens of some sequences: their keys and values are written, then they see all of their sequence.

    rows      how the N new tokens divide into B sequences
    slots     (B,) int64, where each sequence lies in the cache; a slice where they lie side by side
    slot_of_row, position_of_row  (N,) int64
    visible   (B, n, M) bool, what each new token sees of the longest M tokens of its sequence
    """

    cache: KVCache
    rows: Ragged
    slots: Tensor | slice
    slot_of_row: Tensor
    position_of_row: Tensor
    visible: Tensor
    mtp_ids: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.slot_of_row, self.position_of_row] = k
        values[self.slot_of_row, self.position_of_row] = v
        longest = self.visible.shape[2]
        held_keys, held_values = keys[self.slots, :longest], values[self.slots, :longest]
        return cached_attention(q, held_keys, held_values, self.rows, self.visible)


def lay_out(cache: KVCache, slots: list[int], starts: list[int], counts: list[int]) -> CachedBatch:
    """Describe `counts` new tokens per sequence, the first at index `starts` of its sequence."""
    device = cache.keys.device
    rows = Ragged(counts, device)
    slot_ids = torch.tensor(slots, device=device)
    side_by_side = slots == list(range(slots[0], slots[0] + len(slots)))
    first = torch.tensor(starts, device=device)
    new = torch.tensor(counts, device=device)
    visible = visible_keys(new, first + new, rows.longest, max(s + n for s, n in zip(starts, counts)))
    return CachedBatch(
        cache,
        rows,
        slice(slots[0], slots[0] + len(slots)) if side_by_side else slot_ids,
        slot_ids[rows.sequence_of_row],
        first[rows.sequence_of_row] + rows.index_in_sequence,
        visible,
    )
