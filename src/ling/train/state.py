"""What a run needs to go on exactly where it stopped: weights, moments, snapshots, step. Nothing else is kept:
batches are a function of the seed and the step, noise is one of a seed and the number of updates.
"""

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from ling.checkpoint.dcp import FACTS_NAME, DcpSource
from ling.checkpoint.layout import MODEL_PREFIX
from ling.config.training import OptimConfig
from ling.errors import CheckpointError
from ling.model import CausalLM
from ling.optim.build import build_optimizer, state_tensors
from ling.optim.interchange import convert_, stored_as_wanted
from ling.optim.patterns import freeze_
from ling.optim.spikes import SpikeGuard
from ling.parallel.ranks import Ranks
from ling.train.averaging import SnapshotMean
from ling.train.in_backward import InBackward

_PREVIOUS_NORM = "previous_norm"
"""What the next step of `optim.in_backward` is clipped by."""

Number = TypeVar("Number", int, float)


class TrainState:
    """A model with its optimizer and the snapshots taken so far, after `step` updates."""

    def __init__(
        self, model: CausalLM, optim: OptimConfig, *, sharded: bool = False, ranks: Ranks | None = None
    ) -> None:
        self.model = model
        self.sharded = sharded
        """Whether each rank holds a part, so that all of them read and write together."""
        self.optimizer = build_optimizer(model, optim)
        self.frozen_biases = freeze_(model, optim.freeze)
        """Layers whose expert bias stays."""
        self.in_backward = InBackward(model, self.optimizer, optim, ranks) if optim.in_backward else None
        self.guard = SpikeGuard(optim.skip)
        self.snapshots = SnapshotMean()
        self.step = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state under a flat name."""
        named = {MODEL_PREFIX + name: value for name, value in self.model.state_dict().items()}
        named |= state_tensors(self.model, self.optimizer)
        return named | {f"snapshots/{name}": value for name, value in self.snapshots.sums.items()}

    def facts(self) -> dict[str, Any]:
        norm = None if self.in_backward is None else self.in_backward.previous_norm
        return {
            "step": self.step, "updates": self.optimizer.updates, "snapshots": self.snapshots.count,
            "skip": self.guard.state(), **({} if norm is None else {_PREVIOUS_NORM: norm}),
        }  # fmt: skip

    def restore(self, source: DcpSource) -> None:
        """Take over a checkpoint of the same model; CheckpointError if anything is missing or of another shape."""
        self.step, self.snapshots.count = read_fact(source, "step", int), read_fact(source, "snapshots", int)
        wanted = {MODEL_PREFIX + name: value for name, value in self.model.state_dict().items()}
        if self.step:
            wanted |= stored_as_wanted(self.model, self.optimizer, source)
        if self.snapshots.count:
            self.snapshots.sums = {
                name: torch.empty_like(value, dtype=torch.float32) for name, value in self.model.state_dict().items()
            }
            wanted |= {f"snapshots/{name}": value for name, value in self.snapshots.sums.items()}
        if (skip := source.facts().get("skip")) is not None:  # checkpoints before it came along have none
            self.guard.restore(skip, str(source.directory / FACTS_NAME))
        if self.in_backward is not None and _PREVIOUS_NORM in source.facts():
            self.in_backward.previous_norm = read_fact(source, _PREVIOUS_NORM, float)
        source.load_into(wanted, together=self.sharded)
        if self.step:
            convert_(self.model, self.optimizer, source)
        # Noise depends on the number of updates; checkpoints before it came along used none.
        self.optimizer.updates = read_fact(source, "updates", int) if "updates" in source.facts() else self.step


def read_fact(source: DcpSource, key: str, kind: type[Number]) -> Number:
    """Return one of the numbers beside the tensors of a training checkpoint; none of them is negative."""
    value = source.facts().get(key)
    if type(value) is not kind or not 0 <= value < math.inf:
        raise CheckpointError(
            f"{source.directory / FACTS_NAME} has {key} = {value!r}, not a number that training wrote; copy the "
            "checkpoint again, or remove it to resume from the one before"
        )
    return value
