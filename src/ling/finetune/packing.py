"""Which samples share a sequence.

The lengths are packed once, greedily: each sequence takes the longest sample that still fits until none does. Which
sample of a length takes which place, and the order of the sequences, are dealt anew for each epoch. So every epoch has
the same number of sequences, and the n-th sequence of a run is found without going through those before it.

Equal fillings are found together: while enough samples of each length are left, the same choice is made again, so the
work grows with the number of different lengths and not with that of samples.
"""

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packing:
    """Places for samples, sequence after sequence.

    lengths  (S,) length of the sample at each place
    starts   (sequences + 1,) first place of each sequence; the last entry is S
    """

    lengths: Integers
    starts: Integers

    def __len__(self) -> int:
        return len(self.starts) - 1


def pack_lengths(lengths: Integers, capacity: int) -> Packing:
    """Pack samples of these lengths, each from 1 to `capacity` tokens, into sequences of `capacity`."""
    distinct, counts = np.unique(lengths, return_counts=True)
    assert not len(distinct) or 1 <= distinct[0] <= distinct[-1] <= capacity, (distinct, capacity)
    left, of_length = [int(length) for length in distinct], {int(n): int(c) for n, c in zip(distinct, counts)}
    places, sizes = [], []
    while left:
        filling = _fill(left, of_length, capacity)
        times = min(of_length[length] // count for length, count in filling)
        one = np.repeat(*np.array(filling, np.int64).T)
        places.append(np.tile(one, times))
        sizes.append(np.full(times, len(one), np.int64))
        for length, count in filling:
            of_length[length] -= count * times
            if not of_length[length]:
                del left[bisect.bisect_left(left, length)]
    none = np.zeros(1, np.int64)
    return Packing(np.concatenate([none[:0], *places]), np.cumsum(np.concatenate([none, *sizes])))


def one_each(lengths: Integers) -> Packing:
    """Give each sample a sequence of its own."""
    return Packing(np.sort(lengths), np.arange(len(lengths) + 1, dtype=np.int64))


def _fill(left: list[int], of_length: dict[int, int], room: int) -> list[tuple[int, int]]:
    """Choose (length, count) for one sequence: always the longest that fits."""
    filling = []
    end = len(left)
    while room and (end := bisect.bisect_right(left, room, 0, end)):
        length = left[end - 1]
        count = min(of_length[length], room // length)
        filling.append((length, count))
        room -= count * length
        end -= 1
    return filling


@dataclass(frozen=True, slots=True)
class Deal:
    """One epoch's hand: which sample lies at each place, and which sequence comes when."""

    sample_at: Integers
    order: Integers


def deal(packing: Packing, lengths: Integers, seed: int, epoch: int) -> Deal:
    """Deal samples onto the places of their length, by a function of (seed, epoch).

    lengths  (S,) of the samples, the multiset that `packing` was made from
    """
    # RandomState's streams are frozen; those of numpy's newer generators may change between releases.
    draw = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, epoch & 0xFFFFFFFF, epoch >> 32])
    shuffled = draw.permutation(len(lengths)).astype(np.int64)
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    sample_at = np.empty_like(by_length)
    sample_at[np.argsort(packing.lengths, kind="stable")] = by_length
    return Deal(sample_at, draw.permutation(len(packing)).astype(np.int64))
