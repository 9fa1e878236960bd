"""One forward pass over the new tokens of some sequences. The only place that calls the model.

The seam for devices: captured graphs and decode kernels stand behind `forward`, `draft` and `logits`.
"""

import math
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import pad

from ling.engine.cache import PagedCache, Part, lay_out
from ling.engine.whole_step import WholeStep
from ling.errors import BackendError
from ling.model import CausalLM
from ling.ops.backend import use_backend
from ling.ops.invariant import ROWS
from ling.ops.rope import Rope, RopeTable

DRAFT_LAYER_OFFSET = 1
"""Slot i of the MTP layer joins token i with the hidden state of token i - 1, whose position it has."""


class Runner:
    """The model beside its cache.

    longest    positions that can occur
    invariant  results for a row do not depend on the other rows: by kernels that compute each element in one order
               where the whole model goes through them, otherwise by padding rows to fixed multiples
    """

    def __init__(self, model: CausalLM, cache: PagedCache, longest: int, *, invariant: bool = False) -> None:
        self.model = model
        self.cache = cache
        self.device = cache.device
        self.invariant = invariant
        self._backend: str | None = None
        self._multiple = 1
        self._whole, self._whole_draft = WholeStep(model, cache), WholeStep(model, cache, draft=True)
        self._rotations = RopeTable(model.config, longest, cache.dtype, cache.device)
        if invariant and not self._runs_through("cpu"):
            self._backend, self._multiple = "invariant", ROWS

    @property
    def pads(self) -> bool:
        """Whether rows are padded, so that what is promised depends on a library's products."""
        return self._multiple > 1

    @torch.inference_mode()
    def forward(self, parts: SequenceOf[Part], tokens: SequenceOf[SequenceOf[int]]) -> tuple[list[Tensor], bool]:
        """Run the new tokens of each part; return their hidden states, (n, H) per part, and whether all are finite."""
        with self._prepared():
            whole = self._suiting(self._whole, parts)
            batch = lay_out(self.cache, parts, multiple=self._multiple, together=whole is not None)
            ids = [t for i in batch.order for t in tokens[i]]
            ids += [0] * (len(batch.positions) - len(ids))
            rows = torch.tensor(ids, device=self.device)
            if whole is not None:
                hidden, finite = whole(self.model.model.embed(rows), self._rotate(batch.positions), batch)
            else:
                hidden = self.model(rows, batch.positions, batch).hidden
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
        with self._prepared():
            whole = self._suiting(self._whole_draft, parts)
            batch = lay_out(self.cache, parts, multiple=self._multiple, together=whole is not None)
            ids = [t for i in batch.order for t in tokens[i]]
            rows = torch.cat([hidden[i] for i in batch.order])
            if padding := len(batch.positions) - len(ids):
                ids += [0] * padding
                rows = pad(rows, (0, 0, 0, padding))
            positions = (batch.positions - DRAFT_LAYER_OFFSET).clamp_min_(0)
            ahead = torch.tensor(ids, device=self.device)
            if whole is not None:
                out, _ = whole(self.model.model.embed(ahead), self._rotate(positions), batch, rows)
            else:
                out = self.model.draft(0, ahead, rows, positions, batch)
        return _by_part(out, parts, batch.order)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return (N, V) float32."""
        padding = -len(hidden) % self._multiple
        with self._prepared():
            logits = self.model.logits(pad(hidden, (0, 0, 0, padding)) if padding else hidden)
        return logits[: len(hidden)] if padding else logits

    def _suiting(self, whole: WholeStep, parts: SequenceOf[Part]) -> WholeStep | None:
        """Return `whole` if it is the way to run these parts."""
        if self.pads:
            return None
        counts = [part.num_new for part in parts]
        return whole if whole.suits(sum(counts), max(counts)) else None

    def _rotate(self, positions: Tensor) -> Rope:
        return self._rotations(positions, self.model.config, torch.float32)

    def _runs_through(self, backend: str) -> bool:
        """Whether every op of the model that has such a back end can use it; from now on it does, if so."""
        self._backend = backend
        somewhere = [Part([self.cache.spare_slot // self.cache.block_size], 0, 1)]
        try:
            (hidden,), _ = self.forward(somewhere, [[0]])
            self.logits(hidden)
            if self.model.config.num_nextn_predict_layers:
                self.draft(somewhere, [[0]], [hidden])
        except BackendError:
            return False
        return True

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Have the model look rotations up, and choose the back end."""
        network = self.model.model
        before, network.rotate = network.rotate, self._rotations
        try:
            with nullcontext() if self._backend is None else use_backend(self._backend):
                yield
        finally:
            network.rotate = before


def _by_part(rows: Tensor, parts: SequenceOf[Part], order: list[int]) -> list[Tensor]:
    out: list[Tensor] = [rows] * len(parts)
    begin = 0
    for i in order:
        out[i] = rows[begin : begin + parts[i].num_new]
        begin += parts[i].num_new
    return out
