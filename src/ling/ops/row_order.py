"""Sorting (token, choice) pairs by expert, and back."""

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
