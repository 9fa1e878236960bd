"""Sorting (token, choice) pairs by expert, and back; padding each expert's rows to a multiple."""

from typing import NamedTuple

import torch
from torch import Tensor


class RowOrder(NamedTuple):
    """The permutation between (token, choice) pairs and rows sorted by expert."""

    pair_of_row: Tensor
    """(R,) pair token * k + choice that became this row; ascending within an expert."""
    row_of_pair: Tensor
    """(R,) its inverse."""
    offsets: Tensor
    """(E,) int32, end of each expert's rows."""


def order_rows(ids: Tensor, counts: Tensor) -> RowOrder:
    """Sort the (token, choice) pairs of `ids` (N, k) by expert, tokens in order within each."""
    pair_of_row = ids.flatten().argsort(stable=True)
    row_of_pair = torch.empty_like(pair_of_row)
    row_of_pair[pair_of_row] = torch.arange(pair_of_row.numel(), device=ids.device)
    return RowOrder(pair_of_row, row_of_pair, counts.cumsum(0).to(torch.int32))


class PaddedOrder(NamedTuple):
    """The same permutation with room after each expert's rows, so that every expert begins at a multiple."""

    pair_of_slot: Tensor
    """(S,) pair that became this row; R where no pair did."""
    slot_of_pair: Tensor
    """(R,) where each pair lies."""
    offsets: Tensor
    """(E,) int32, end of each expert's rows, padding included. Rows from the last on belong to nobody."""


def pad_order(order: RowOrder, ids: Tensor, counts: Tensor, multiple: int) -> PaddedOrder:
    """Move rows apart on the device, without asking it anything: S is what the worst counts need.

    order  as `order_rows(ids, counts)` gives it; ids (N, k), counts (E,)
    """
    R, E = ids.numel(), len(counts)
    padded = (counts + multiple - 1).div(multiple, rounding_mode="floor") * multiple
    ends = padded.cumsum(0)
    shift = (ends - padded) - (order.offsets - counts)  # (E,) of each expert's first row
    slot_of_pair = order.row_of_pair + shift[ids.flatten()]
    most = R + min(E, R) * (multiple - 1)
    S = -(-most // multiple) * multiple
    pair_of_slot = torch.full((S,), R, dtype=torch.int64, device=ids.device)
    pair_of_slot[slot_of_pair] = torch.arange(R, device=ids.device)
    return PaddedOrder(pair_of_slot, slot_of_pair, ends.to(torch.int32))
