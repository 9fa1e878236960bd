"""Keys and values of the tokens already seen, in blocks; and the batch of one step, as the model sees it.

Sequences of one step are put into groups whose padded attention costs little more than its parts: decoding
sequences together, each long chunk of a prompt by itself.
"""

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ling.checkpoint.pages import anonymous_pages, view
from ling.config import ModelConfig
from ling.ops.attention import visible_keys
from ling.ops.paged_attention import BlockStore, HeldBlocks, paged_attention, paged_step, write
from ling.ops.ragged import Ragged

_WORTH_A_CALL = 4096
"""Padded pairs of query and key that cost less than one more call of attention."""


class PagedCache:
    """Keys and values of every stored layer (MTP layers included), in `num_blocks` blocks and a spare one for padding.

    dtype      of activations
    held       of keys and values, float8_e4m3fn for codes with one scale per token and head; None: dtype
    """

    def __init__(
        self,
        model: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        held: torch.dtype | None = None,
    ) -> None:
        self.block_size = block_size
        self.device = device
        self.dtype = dtype
        self.spare_slot = num_blocks * block_size
        shape = (model.num_stored_layers, num_blocks + 1, block_size, model.num_key_value_heads)
        held = dtype if held is None else held
        fp8 = held == torch.float8_e4m3fn
        self.keys, self.values = (_zeros((*shape, model.head_dim), held, device) for _ in range(2))
        self.key_scale = torch.zeros(shape, device=device) if fp8 else None
        self.value_scale = torch.zeros(shape, device=device) if fp8 else None
        states = num_blocks + 1 if model.num_nextn_predict_layers else 0
        self.states = torch.zeros(states, model.hidden_size, dtype=dtype, device=device)
        """Main hidden state of the last token of each full block: where drafting goes on behind a shared prefix."""
        self._layers = [self._store(i) for i in range(model.num_stored_layers)]
        self._flat = [BlockStore(*(None if x is None else x.flatten(0, 1) for x in store)) for store in self._layers]  # type: ignore[arg-type]

    def _store(self, layer: int) -> BlockStore:
        scales = (self.key_scale, self.value_scale)
        return BlockStore(self.keys[layer], self.values[layer], *(None if x is None else x[layer] for x in scales))

    def store(self, layer: int) -> BlockStore:
        return self._layers[layer]

    def flat_store(self, layer: int) -> BlockStore:
        """Return the store without its division into blocks."""
        return self._flat[layer]

    def wipe(self, blocks: SequenceOf[int]) -> None:
        """Forget the content of `blocks`: what is not finite would spoil whoever reads past it under a mask."""
        for x in (self.keys, self.values, self.key_scale, self.value_scale):
            if x is not None:
                for block in blocks:
                    (x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x)[:, block] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on a CPU in huge pages, for a long context is read from end to end for every token."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = anonymous_pages(max(1, math.prod(shape) * dtype.itemsize))
    return view(pages, 0, dtype, shape, dtype.itemsize)


class Part(NamedTuple):
    """New tokens of one sequence."""

    blocks: SequenceOf[int]
    start: int
    """Slot of the first one."""
    num_new: int
    first: int = 0
    """The first slot that is seen."""


class Group(NamedTuple):
    rows: Ragged
    held: HeldBlocks


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """New tokens of some sequences: their keys and values are written, then they see all of their sequence.

    order      of the parts given, as they lie in the batch
    slots      (N,) int64 in the cache; padding rows write into the spare block
    positions  (N,) int64, the slot within the sequence
    groups     of sequences attended together, in order; rows behind them are padding
    """

    cache: PagedCache
    order: list[int]
    slots: Tensor
    positions: Tensor
    groups: list[Group]
    mtp_ids: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        store, flat = self.cache.store(layer), self.cache.flat_store(layer)
        if len(self.groups) == 1 and self.groups[0].rows.total == len(q):
            return paged_step(q, k, v, flat, self.slots, store, *self.groups[0])
        write(flat, self.slots, k, v)
        outputs, begin = [], 0
        for rows, held in self.groups:
            outputs.append(paged_attention(q[begin : begin + rows.total], store, rows, held))
            begin += rows.total
        if begin < len(q):
            outputs.append(torch.zeros_like(q[begin:]))
        return torch.cat(outputs)


def lay_out(cache: PagedCache, parts: SequenceOf[Part], *, multiple: int = 1) -> PagedBatch:
    """Describe the rows of one step: the parts in an order that groups well, padded to a multiple of `multiple`."""
    order = sorted(range(len(parts)), key=lambda i: (parts[i].num_new, parts[i].start))
    size = cache.block_size
    slots: list[int] = []
    positions: list[int] = []
    for i in order:
        blocks, start, count, _ = parts[i]
        if count == 1:
            slots.append(blocks[start // size] * size + start % size)
            positions.append(start)
            continue
        positions += range(start, start + count)
        slots += [blocks[p // size] * size + p % size for p in range(start, start + count)]
    padding = -len(slots) % multiple
    slots += [cache.spare_slot] * padding
    positions += [0] * padding
    groups = [_describe(cache, [parts[i] for i in group]) for group in _group(order, parts)]
    device = cache.device
    return PagedBatch(cache, order, torch.tensor(slots, device=device), torch.tensor(positions, device=device), groups)


def _group(order: list[int], parts: SequenceOf[Part]) -> list[list[int]]:
    groups: list[list[int]] = []
    longest_new = longest_held = own = 0
    for i in order:
        n, m = parts[i].num_new, parts[i].start + parts[i].num_new
        new, held, pairs = max(longest_new, n), max(longest_held, m), own + n * m
        if groups and (len(groups[-1]) + 1) * new * held <= 2 * pairs + _WORTH_A_CALL:
            groups[-1].append(i)
        else:
            groups.append([i])
            new, held, pairs = n, m, n * m
        longest_new, longest_held, own = new, held, pairs
    return groups


def _describe(cache: PagedCache, parts: list[Part]) -> Group:
    size, device = cache.block_size, cache.device
    rows = Ragged([p.num_new for p in parts], device)
    held = [p.start + p.num_new for p in parts]
    width = -(-max(held) // size)
    spare = cache.spare_slot // size
    lists = [list(p.blocks[: -(-h // size)]) for p, h in zip(parts, held)]
    tables = torch.tensor([blocks + [spare] * (width - len(blocks)) for blocks in lists], device=device)

    spans = torch.tensor([(p.num_new, h, p.first) for p, h in zip(parts, held)], device=device)

    def see() -> Tensor:
        new, all_held, first = spans.unbind(1)
        visible = visible_keys(new, all_held, rows.longest, width * size)
        if any(p.first for p in parts):
            visible &= (torch.arange(width * size, device=device) >= first[:, None])[:, None]
        return visible

    only = lists[0] if len(parts) == 1 else None
    run = only[0] if only is not None and only == list(range(only[0], only[0] + width)) else None
    num_visible = held[0] if only is not None and rows.total == 1 and not parts[0].first else 0
    return Group(rows, HeldBlocks(tables, see, run=run, num_visible=num_visible, spans=spans))
