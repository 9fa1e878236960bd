"""Choices that need not read the whole head: `ops.cpu.shortlist`, where that is the faster way."""

import logging
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from ling.checkpoint.pages import anonymous_pages
from ling.engine.sampler import Row
from ling.model import CausalLM
from ling.ops.backend import forced_backend
from ling.ops.cpu import shortlist
from ling.ops.cpu.library import library
from ling.ops.cpu.shortlist import Shortlist, Wanted
from ling.ops.linear import Weight
from ling.ops.packed import PackedWeight

logger = logging.getLogger(__name__)

LEAST_BYTES = 2**26
"""Of a head: a smaller one lies in a cache, and nothing is gained by reading less of it."""
MOST_ROWS = {"avx512": 4, "avx2": 3, "plain": 0}
"""With more, products take longer than reading, and those of 4 bits as long as those of 8."""
_JUDGED, _PAUSE = 32, 512
"""Choices after which what they have read is looked at, and choices that read the whole head behind too much of it."""
_MOST_READ_AGAIN = 0.2
"""Of the head: half of it and that much take about as long as all of it, for it is read here and there. On two cores of
a Zen 4 as long as all of it were 0.34, 0.28, 0.25 and 0.16 with 1 to 4 rows."""


class HeadShortlist:
    """The head of a model with its sketch, made anew where the weight has changed or lies elsewhere.

    What is written past torch's count of changes, such as through `.data`, is not seen.
    """

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._weight: Weight | None = None
        self._state: tuple[int, ...] = ()
        self._known: Shortlist | None = None
        self._count = self._pause = 0
        self._look()

    @property
    def nbytes(self) -> int:
        """What the sketch takes; 0: there is none."""
        return 0 if self._known is None else self._known.nbytes

    def bytes_spared(self, rows: int) -> float:
        """Return what choices of so many rows leave unread of the head, by what was read again so far."""
        if self._known is None or self._pause or rows > _most_rows():
            return 0.0
        return max(0.0, self._known.nbytes - self._known.share_read_again * self._known.weight.nbytes)

    def logits(self, hidden: Tensor, rows: SequenceOf[Row]) -> Tensor | None:
        """Return (N, V) as `Shortlist.logits` for what these rows choose by; None where all is better read whole."""
        if len(rows) > _most_rows() or hidden.dtype != torch.float32:
            return None
        wanted = [own for row in rows if (own := _wanted(row)) is not None]
        if len(wanted) != len(rows) or (known := self.ready(len(rows))) is None:
            return None
        return known.logits(hidden, wanted)

    def ready(self, rows: int) -> Shortlist | None:
        """Return what is to be read for choices of so many rows; None: the whole head."""
        if rows > _most_rows() or forced_backend() not in (None, "cpu"):
            return None
        self._look()
        if self._known is None:
            return None
        if self._pause:
            self._pause -= 1
            return None
        self._count += 1
        if self._count % _JUDGED == 0:
            share = self._known.share_read_again
            self._known.forget()
            if share > _MOST_READ_AGAIN:
                logger.debug("choices had to read %.0f %% of the head again; a pause", 100 * share)
                self._pause = _PAUSE
                return None
        return self._known

    def _look(self) -> None:
        weight = self._model.head()
        state = _state_of(weight)
        if weight is self._weight and state == self._state:
            return
        self._weight, self._state = weight, state
        self._known, self._count, self._pause = None, 0, 0
        if (reason := _rather_not(weight)) is not None:
            logger.debug("choices read the whole head: %s", reason)
            return
        assert isinstance(weight, PackedWeight)
        try:
            room = anonymous_pages(shortlist.room_for(weight))
        except OSError as error:  # nothing depends on it but speed
            logger.warning("choices read the whole head: there is no memory for its sketch (%s)", error.strerror)
            return
        self._known = Shortlist(weight, torch.frombuffer(room, dtype=torch.uint8))


def _state_of(weight: Weight) -> tuple[int, ...]:
    """Return what changes where the values of a packed weight do, or the places where they lie."""
    if not isinstance(weight, PackedWeight):
        return ()
    version = 0 if weight.codes.is_inference() else weight.codes._version
    return version, weight.codes.data_ptr(), weight.scales.data_ptr()


def _rather_not(weight: Weight) -> str | None:
    """Why choices are not to look at a sketch of the head, or None."""
    if (reason := shortlist.why_not(weight)) is not None:
        return reason
    assert isinstance(weight, PackedWeight)
    if weight.nbytes < LEAST_BYTES:
        return "it is small"
    if weight.codes.is_inference():
        return "it is an inference tensor, whose changes nobody counts"
    return None if _most_rows() else "plain C computes more slowly than it reads"


def _most_rows() -> int:
    kernels = library()
    return 0 if kernels is None else MOST_ROWS[kernels.level]


def _wanted(row: Row) -> Wanted | None:
    """Return which logits decide, where few do."""
    params = row.params
    if row.allowed is not None or row.barred or params.logit_bias or params.counts_tokens:
        return None
    if not params.temperature:
        return Wanted(1)
    if 0 < params.top_k <= shortlist.MOST_RANKED:
        return Wanted(params.top_k)
    return Wanted(0, params.temperature, row.noise_key()) if params.is_free else None
