"""Sequences of different lengths side by side in one row of tokens."""

from functools import cached_property

import torch
from torch import Tensor

_SIMILAR = 1.5
_MAX_RUNS = 8


class Ragged:
    """How N rows divide into B sequences. Lengths live on the host, index tensors on the device, made once.

    lengths  B positive lengths, N in sum
    """

    def __init__(self, lengths: list[int] | tuple[int, ...], device: torch.device | str = "cpu") -> None:
        assert all(n > 0 for n in lengths), lengths
        self.lengths = tuple(lengths)
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def total(self) -> int:
        """N."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def uniform(self) -> bool:
        """Whether all sequences are equally long: then (N, ...) is (B, S, ...) without moving anything."""
        return min(self.lengths) == self.longest

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """(B + 1,) int32, where each sequence starts; the last entry is N."""
        ends = torch.tensor((0, *self.lengths), dtype=torch.int32, device=self.device)
        return ends.cumsum(0, dtype=torch.int32)

    @cached_property
    def sequence_of_row(self) -> Tensor:
        """(N,) int64."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.arange(len(self), device=self.device).repeat_interleave(lengths)

    @cached_property
    def index_in_sequence(self) -> Tensor:
        """(N,) int64, counted from 0 in each sequence: the positions of a plain pack."""
        starts = self.cu_seqlens[:-1].to(torch.int64)
        return torch.arange(self.total, device=self.device) - starts[self.sequence_of_row]

    @cached_property
    def slot_of_row(self) -> Tensor:
        """(N,) int64, where each row lies in the padded form (B * longest)."""
        return self.sequence_of_row * self.longest + self.index_in_sequence

    @cached_property
    def runs(self) -> tuple["Ragged", ...]:
        """Neighbours of similar length, in order: what is worth padding together.

        A pack sorted by length falls into a few runs; one in random order is left whole.
        """
        runs: list[list[int]] = []
        for n in self.lengths:
            low, high = (min(n, *runs[-1]), max(n, *runs[-1])) if runs else (0, 1)
            if high > _SIMILAR * low:
                runs.append([])
            runs[-1].append(n)
        return tuple(Ragged(run, self.device) for run in runs) if len(runs) <= _MAX_RUNS else (self,)

    def pad(self, rows: Tensor) -> Tensor:
        """Return rows (N, ...) as (B, longest, ...), zeros behind each sequence."""
        if self.uniform:
            return rows.unflatten(0, (len(self), self.longest))
        padded = rows.new_zeros((len(self) * self.longest, *rows.shape[1:]))
        return padded.index_copy(0, self.slot_of_row, rows).unflatten(0, (len(self), self.longest))

    def unpad(self, padded: Tensor) -> Tensor:
        """Return (B, longest, ...) as rows (N, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.uniform else flat.index_select(0, self.slot_of_row)
