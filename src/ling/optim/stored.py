"""Weights and moments as an update sees them: a slice in float32, and a way to put it back.

What is kept in few bits is decoded a slice at a time, so that an update never holds a whole parameter in float32.
"""

from typing import Protocol

import torch
from torch import Tensor

from ling.ops.adamw import Moment
from ling.ops.noise import lane, random_bits
from ling.ops.rounding import NEAREST, round_to_bfloat16
from ling.optim.moments import BLOCK_SIZE, Kind, MomentFormat, format_of

CHUNK = 2**24
"""Elements that an update holds in float32 at once, at most; a multiple of the moments' blocks."""
WEIGHT, MEAN, SQUARE = 0, 1, 2
"""Lanes of noise."""


class Stored(Protocol):
    """A tensor that is read and written slice by slice of its first dim."""

    def read(self, here: slice) -> Tensor:
        """Return values that may be changed in place."""
        ...

    def write(self, here: slice, values: Tensor) -> None:
        """Put back what `read` gave, changed."""
        ...


class InPlace:
    """Values that are kept as they are computed with."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def read(self, here: slice) -> Tensor:
        return self.tensor[here]

    def write(self, here: slice, values: Tensor) -> None:
        """Do nothing: they were changed where they are."""


class Noise:
    """The noise of one parameter in one step: 64 bits for each of its elements, shared by all that is rounded.

    offset  which of the parameter's elements the part at hand begins with: noise is one of the place in the whole
    """

    def __init__(self, key: int, device: torch.device, offset: int = 0) -> None:
        self._key, self._device, self._offset = key, device, offset
        self._range: tuple[int, int] | None = None  # that `_bits` are of; a part of no elements has a range, too
        self._bits = torch.empty(0)

    def lane(self, first: int, end: int, index: int) -> Tensor:
        """Return 16 bits for each of the elements of this part from `first` to before `end`."""
        if self._range != (first, end):
            start = self._offset + first
            self._range, self._bits = (first, end), random_bits(self._key, start, end - first, self._device)
        return lane(self._bits, index)


class RoundedWeight:
    """A bfloat16 weight; `noise` None: rounded to nearest."""

    def __init__(self, weight: Tensor, noise: Noise | None) -> None:
        self.weight, self.noise = weight, noise

    def read(self, here: slice) -> Tensor:
        return self.weight[here].to(torch.float32)

    def write(self, here: slice, values: Tensor) -> None:
        first, end = flat_range(self.weight, here)
        noise = NEAREST if self.noise is None else self.noise.lane(first, end, WEIGHT).view(values.shape)
        self.weight[here] = round_to_bfloat16(values, noise)


class CodedMoment:
    """A moment in `format`; slices begin at multiples of 256 elements and end at them or where the moment ends."""

    def __init__(self, codes: Tensor, scale: Tensor | None, format: MomentFormat, noise: Noise, lane: int) -> None:
        self.codes, self.scale, self.format, self.noise, self.lane = codes, scale, format, noise, lane

    def read(self, here: slice) -> Tensor:
        first, end = flat_range(self.codes, here)
        return self.format.decode(self.codes.view(-1)[first:end], self._scales(first, end)).view(self.codes[here].shape)

    def write(self, here: slice, values: Tensor) -> None:
        first, end = flat_range(self.codes, here)
        codes, scale = self.format.encode(values.reshape(-1), self.noise.lane(first, end, self.lane))
        self.codes.view(-1)[first:end] = codes
        if scale is not None:
            kept = self._scales(first, end)
            assert kept is not None
            kept.copy_(scale)

    def _scales(self, first: int, end: int) -> Tensor | None:
        if self.scale is None:
            return None
        assert first % BLOCK_SIZE == 0, first
        assert end % BLOCK_SIZE == 0 or end == self.codes.numel(), (end, self.codes.numel())
        return self.scale[first // BLOCK_SIZE : -(-end // BLOCK_SIZE)]


def as_stored(moment: Moment, kind: Kind, noise: Noise) -> Stored:
    """Return a moment's reader and writer, by what it is kept in."""
    if moment.codes.dtype == torch.float32:
        return InPlace(moment.codes)
    lane = SQUARE if kind == "square" else MEAN
    return CodedMoment(moment.codes, moment.scale, format_of(moment.codes.dtype, kind), noise, lane)


def flat_range(tensor: Tensor, here: slice) -> tuple[int, int]:
    """Return where a slice of the first dim begins and ends among all elements."""
    first, end, _ = here.indices(len(tensor))
    each = tensor.numel() // max(1, len(tensor))
    return first * each, end * each
