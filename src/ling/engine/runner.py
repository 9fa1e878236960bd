"""One forward pass over the new tokens of some sequences. The only place that calls the model.

The seam for devices: captured graphs and decode kernels stand behind `forward`, `draft` and `logits`.
"""

import math
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import pad

from ling.engine.cache import PagedCache, Part, lay_out
from ling.engine.head import HeadShortlist
from ling.engine.sampler import Row
from ling.engine.whole_step import WholeStep
from ling.errors import BackendError
from ling.model import CausalLM
from ling.ops.backend import use_backend
from ling.ops.invariant import ROWS
from ling.ops.rope import RopeTable

DRAFT_LAYER_OFFSET = 1
"""Slot i of the MTP layer joins token i with the hidden state of token i - 1, whose position it has."""

_UNFORCED = nullcontext()


class Runner:
    """The model beside its cache.

    longest    positions that can occur
    invariant  results for a row do not depend on the other rows: by kernels that compute each element in one order
               where the whole model goes through them, otherwise by padding rows to fixed multiples
    drafts     the MTP layer is going to be asked
    shortlist  choices are to read less of the head where they can
    """

    def __init__(
        self,
        model: CausalLM,
        cache: PagedCache,
        longest: int,
        *,
        invariant: bool = False,
        drafts: bool = True,
        shortlist: bool = False,
    ) -> None:
        self.model = model
        self.cache = cache
        self.device = cache.device
        self.invariant = invariant
        self._backend: str | None = None
        self._multiple = 1
        self._rotations = RopeTable(model.config, longest, cache.dtype, cache.device)
        self._whole = WholeStep(model, cache, self._rotations.rope)
        self._drafts = drafts and model.config.num_nextn_predict_layers > 0
        self._whole_draft = WholeStep(model, cache, self._rotations.rope, draft=True) if self._drafts else None
        if invariant and not self._runs_through("cpu"):
            self._backend, self._multiple = "invariant", ROWS
        self.head = HeadShortlist(model) if shortlist and not self.pads else None

    @property
    def pads(self) -> bool:
        """Whether rows are padded, so that what is promised depends on a library's products."""
        return self._multiple > 1

    @torch.inference_mode()
    def forward(self, parts: SequenceOf[Part], tokens: SequenceOf[SequenceOf[int]]) -> tuple[list[Tensor], bool]:
        """Run the new tokens of each part; return their hidden states, (n, H) per part, and whether all are finite."""
        if self._suits(self._whole, parts):
            hidden, finite = self._whole(parts, tokens)
            return _by_part(hidden, parts, range(len(parts))), finite
        with self._prepared():
            batch = lay_out(self.cache, parts, multiple=self._multiple)
            ids = [t for i in batch.order for t in tokens[i]]
            ids += [0] * (len(batch.positions) - len(ids))
            hidden = self.model(torch.tensor(ids, device=self.device), batch.positions, batch).hidden
            finite = math.isfinite(hidden.sum().item())
        return _by_part(hidden, parts, batch.order), finite

    @torch.inference_mode()
    def draft(
        self, parts: SequenceOf[Part], tokens: SequenceOf[SequenceOf[int]], hidden: SequenceOf[Tensor]
    ) -> list[Tensor]:
        """Run the first MTP layer over slots; `tokens` are the slots' own.

        hidden  per part (n, H) of the tokens before those: the main model's, or the layer's own for a second draft
        return  per part (n, H)
        """
        whole = self._whole_draft
        if self._suits(whole, parts):
            rows, _ = whole(parts, tokens, torch.cat([*hidden]) if len(hidden) > 1 else hidden[0])
            return _by_part(rows, parts, range(len(parts)))
        with self._prepared():
            batch = lay_out(self.cache, parts, multiple=self._multiple)
            ids = [t for i in batch.order for t in tokens[i]]
            rows = torch.cat([hidden[i] for i in batch.order])
            if padding := len(batch.positions) - len(ids):
                ids += [0] * padding
                rows = pad(rows, (0, 0, 0, padding))
            positions = (batch.positions - DRAFT_LAYER_OFFSET).clamp_min_(0)
            out = self.model.draft(0, torch.tensor(ids, device=self.device), rows, positions, batch)
        return _by_part(out, parts, batch.order)

    @torch.inference_mode()
    def propose(
        self,
        parts: SequenceOf[Part],
        tokens: SequenceOf[SequenceOf[int]],
        hidden: SequenceOf[Tensor],
        temperatures: SequenceOf[float],
        keys: SequenceOf[int],
    ) -> list[list[int]] | None:
        """Do as `draft`, then choose some drafts behind the first sequences; None, nothing done, if that cannot be.

        temperatures  of each sequence that drafts, 0: greedy
        keys          of their noise: of all first drafts, then of all second ones, and so on
        """
        whole = self._whole_draft
        if not self._suits(whole, parts):
            return None
        rows = torch.cat([*hidden]) if len(hidden) > 1 else hidden[0]
        shortlist = None if self.head is None else self.head.ready(len(temperatures))
        return whole.propose(parts, tokens, rows, temperatures, keys, shortlist)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: SequenceOf[Row] | None = None) -> Tensor:
        """Return (N, V) float32.

        rows  what tokens are chosen by, if they are all that logits are for: others than those may be -inf
        """
        if rows is not None and self.head is not None and (found := self.head.logits(hidden, rows)) is not None:
            return found
        padding = -len(hidden) % self._multiple
        with self._through():
            logits = self.model.logits(pad(hidden, (0, 0, 0, padding)) if padding else hidden)
        return logits[: len(hidden)] if padding else logits

    def _suits(self, whole: WholeStep | None, parts: SequenceOf[Part]) -> TypeGuard[WholeStep]:
        """Whether `whole` is the way to run these parts."""
        if whole is None or self.pads or whole.why_not is not None:
            return False
        counts = [part.num_new for part in parts]
        with self._through():
            return whole.suits(sum(counts), max(counts))

    def _runs_through(self, backend: str) -> bool:
        """Whether every op of the model that has such a back end can use it; from now on it does, if so."""
        self._backend = backend
        somewhere = [Part([self.cache.spare_slot // self.cache.block_size], 0, 1)]
        try:
            (hidden,), _ = self.forward(somewhere, [[0]])
            self.logits(hidden)
            if self._drafts:
                self.draft(somewhere, [[0]], [hidden])
        except BackendError:
            return False
        return True

    def _through(self) -> AbstractContextManager[None]:
        return _UNFORCED if self._backend is None else use_backend(self._backend)

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Have the model look rotations up, and choose the back end."""
        network = self.model.model
        before, network.rotate = network.rotate, self._rotations
        try:
            with self._through():
                yield
        finally:
            network.rotate = before


def _by_part(rows: Tensor, parts: SequenceOf[Part], order: SequenceOf[int]) -> list[Tensor]:
    counts = [parts[i].num_new for i in order]
    padding = rows.shape[0] - sum(counts)
    views = rows.split([*counts, padding] if padding else counts)
    out: list[Tensor] = [rows] * len(parts)
    for i, own in zip(order, views):
        out[i] = own
    return out
