"""Logits of the tokens that can still be chosen, from a head of which most is read in half its bytes.

A sketch, four bits for each of an int8 matrix, bounds every logit; only tiles of 16 tokens where one may matter are
then read whole. kernels/shortlist.h says what the bound rests on: for any weights and activations it holds for all of
157,184 tokens but with a probability of 6e-17.
"""

import ctypes
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.cpu import library as lib
from ling.ops.noise import mix
from ling.ops.packed import GROUP, PackedWeight, codes_shape

MOST_RANKED = 64
"""Of the largest logits of a row that can be asked for."""
SKETCH_STEP = 17
"""What a byte of the matrix, plus a dither below this, is divided by: 16 codes hold all of it."""


class Wanted(NamedTuple):
    """What the logits of a row are for.

    rank         how many of the largest are wanted, up to `MOST_RANKED`; 0: those that noise may choose
    temperature  that they are divided by before noise is added, where rank is 0
    key          of that noise
    """

    rank: int
    temperature: float = 0.0
    key: int = 0


class CSketch(ctypes.Structure):
    """`Sketch` of kernels.h."""

    _fields_ = [("codes", ctypes.c_void_p), ("dither", ctypes.c_void_p)]


class CWanted(ctypes.Structure):
    """`Wanted` of kernels.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("ranks", "temperatures", "keys", "read_again")]


def why_not(weight: object) -> str | None:
    """Why a matrix has no sketch, or None."""
    if not isinstance(weight, PackedWeight) or weight.format != "int8" or weight.codes.dim() != 5 or weight.rows[1:]:
        return "it is not one matrix of int8"
    return lib.missing() or lib.why_not_weight(weight)


class Shortlist:
    """An int8 matrix (V, H) with its sketch, which is made now.

    room  memory for it, of `room_for(weight)` bytes; None: torch's
    """

    def __init__(self, weight: PackedWeight, room: Tensor | None = None) -> None:
        self.weight = weight
        self.dither = dither(weight.codes.shape[-4] * GROUP)
        room = torch.empty(room_for(weight), dtype=torch.uint8) if room is None else room
        self.codes = room.view(codes_shape("int4", (), weight.rows, weight.columns))
        self.looked_at, self._read_again = 0, ctypes.c_int64()
        self._matrix = lib.CMatrix(*lib.fields(weight, weight.shape[0]))
        self._sketch = CSketch(self.codes.data_ptr(), self.dither.data_ptr())
        made = (ctypes.byref(self._matrix), torch.get_num_threads(), self.dither.data_ptr(), self.codes.data_ptr())
        lib.check(lib.opened().sketch(*made))

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.dither.nbytes

    @property
    def share_read_again(self) -> float:
        """Of tiles looked at since `forget`; with those that told what has to be reached, so it may exceed 1."""
        return self._read_again.value / max(1, self.looked_at)

    def forget(self) -> None:
        self.looked_at = self._read_again.value = 0

    def address(self, looks: int = 1) -> tuple[int, int]:
        """Return where the sketch is described and tiles are counted, for a call that goes so often through it."""
        self.looked_at += looks * self.codes.shape[0]
        return ctypes.addressof(self._sketch), ctypes.addressof(self._read_again)

    def logits(self, x: Tensor, wanted: Sequence[Wanted]) -> Tensor:
        """Multiply rows by the matrix where it matters.

        x       (N, H) float32
        return  (N, V), where each value is that of the whole product, bit for bit, or -inf for a token that is none of
                those wanted
        """
        (N, H), (V, K) = x.shape, self.weight.shape
        assert H == K, (H, K)
        assert len(wanted) == N, (len(wanted), N)
        assert all(1 <= own.rank <= MOST_RANKED or own.rank == 0 < own.temperature for own in wanted), wanted
        x, y = x.contiguous(), torch.empty(N, V)
        columns = [array(code, values) for code, values in zip("qfQ", zip(*wanted))]
        sketch, read_again = self.address()
        asked = CWanted(*(values.buffer_info()[0] for values in columns), read_again)
        known = (ctypes.byref(self._matrix), sketch, ctypes.byref(asked))
        lib.check(lib.opened().shortlist(x.data_ptr(), y.data_ptr(), N, torch.get_num_threads(), *known))
        return y


def room_for(weight: PackedWeight) -> int:
    """Return the bytes of a sketch's codes: half of the matrix's."""
    return weight.codes.nbytes // 2


def dither(columns: int) -> Tensor:
    """Return a value from 0 to 16 for each column, (columns,) uint8: as good as random, and always the same."""
    return mix(torch.arange(columns)).remainder_(SKETCH_STEP).to(torch.uint8)
