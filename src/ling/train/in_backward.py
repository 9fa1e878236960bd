"""Updates while backward runs: a layer's gradients are used up as soon as they are complete, and forgotten.

    backward:   head -> final norm -> last block -> ... -> first block -> embedding
    each:       complete -> finite? -> scale -> into the moments, and with the last microbatch into the weights

So no more gradients are there than one layer's (docs/internals/in-backward.md). What a step must decide beforehand it
decides by what is known then:

    several microbatches  all but the last go into the moments (`optim.gather`); the last one's backward moves weights
    clipping              by the norm of the step before, or by tensor (`optim.clipping`)
    a spike of the loss   is seen before the last backward, which then does not run: no weight moves
    not finite            neither that layer's gradients are applied nor any that come later in the step
"""

import logging
import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from ling.config.training import OptimConfig
from ling.errors import ConfigError
from ling.model import CausalLM
from ling.ops.gradient_norm import sum_of_squares
from ling.optim.muon_adamw import MUON, MuonAdamW
from ling.optim.stored import CHUNK
from ling.parallel.ranks import Ranks

logger = logging.getLogger(__name__)

_EPSILON = 1e-6
"""Beside a norm that is divided by: torch's own."""


class Layer:
    """Parameters that are updated together, and how many of their gradients are there."""

    def __init__(self, name: str, parameters: list[Tensor]) -> None:
        self.name, self.parameters = name, parameters
        self.arrived = 0


class InBackward:
    """Updates one model during its backward passes.

    optimizer  over the same model, built before
    ranks      those that the model is laid out over, all of which do the same; None: it is whole and here
    """

    def __init__(self, model: CausalLM, optimizer: MuonAdamW, optim: OptimConfig, ranks: Ranks | None = None) -> None:
        self._model, self._optimizer, self._optim, self._ranks = model, optimizer, optim, ranks
        self.previous_norm: float | None = None
        """Of the last whole step, before scaling; None before the first one."""
        self.broken: str | None = None
        """The first layer of this step whose gradients are not finite."""
        self.layers = layers_of(model)
        for layer in self.layers:
            for parameter in layer.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._arrive, layer))
        self.begin(1)

    def begin(self, microbatches: int) -> None:
        """Make ready for a step of so many backward passes; ConfigError if they cannot be gathered."""
        if microbatches > 1 and self._optim.method == MUON and self._optim.muon.nesterov:
            raise ConfigError(
                f"optim.in_backward never has the gradients of {microbatches} microbatches together, which "
                "Nesterov's momentum asks for; use optim.muon.nesterov=false, or one microbatch"
            )
        self.broken = None
        self._last, self._index = microbatches - 1, 0
        self._squares = 0.0
        self._gathered: set[Tensor] = set()
        self._applied = self._complete = False
        self._scale = 1.0
        if self._optim.clipping == "lagged" and self._optim.clip_grad_norm and self.previous_norm is not None:
            self._scale = min(1.0, self._optim.clip_grad_norm / (self.previous_norm + _EPSILON))

    def backward(self, loss: Tensor, microbatch: int) -> bool:
        """Run the backward pass of a microbatch of this step, counted from 0; return whether all of it was finite."""
        self._index = microbatch
        loss.backward()
        for layer in self.layers:  # a loss need not depend on all parameters of a layer
            if microbatch == self._last:
                for parameter in self._gathered.intersection(layer.parameters):
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if any(parameter.grad is not None for parameter in layer.parameters):
                self._consume(layer)
            layer.arrived = 0
        self._complete = microbatch == self._last and self.broken is None
        return self.broken is None

    def finish(self) -> float:
        """End the step; return the norm of its gradients before scaling, 0 if no backward ran.

        Of several microbatches it is the root of the sum of their squared norms: that of the whole gradient if theirs
        are at right angles, as those of noise are.
        """
        norm = math.sqrt(self._squares) if self._squares >= 0 else math.nan
        if self._complete:
            self.previous_norm = norm
        if self._applied:
            self._optimizer.updates += 1
        return norm

    @torch.no_grad()
    def _arrive(self, layer: Layer, parameter: Tensor) -> None:
        layer.arrived += 1
        if layer.arrived == len(layer.parameters):
            self._consume(layer)

    @torch.no_grad()
    def _consume(self, layer: Layer) -> None:
        """Use up and forget the gradients of a layer."""
        ready = [parameter for parameter in layer.parameters if parameter.grad is not None]
        if self.broken is None:
            squares = self._sum_of_squares(ready)
            self._squares += squares
            if not math.isfinite(squares):
                self.broken = layer.name
                logger.warning("gradients of %s are not finite; nothing is updated from there on", layer.name)
        if self.broken is None:
            self._apply(ready)
        for parameter in ready:
            parameter.grad = None

    def _apply(self, ready: list[Tensor]) -> None:
        if self._scale < 1:
            for parameter in ready:
                assert parameter.grad is not None
                parameter.grad.mul_(self._scale)
        self._applied = True
        if self._index == self._last:
            self._optimizer.update_(ready)
            self._gathered.difference_update(ready)
        else:
            self._optimizer.gather_(ready, self._index)
            self._gathered.update(ready)

    def _sum_of_squares(self, parameters: list[Tensor]) -> float:
        """Add up over all ranks, so that all of them decide alike."""
        if self._ranks is not None:
            return self._ranks.sum_of_squares(self._model, parameters, CHUNK).item()
        gradients = [p.grad.reshape(-1) for p in parameters if p.grad is not None]
        return sum_of_squares([piece for gradient in gradients for piece in gradient.split(CHUNK)]).item()


def layers_of(model: CausalLM) -> list[Layer]:
    """Return what is updated together, of the parameters that are trained: each block, and each module around them."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(_layer_name(name.split(".")), []).append(parameter)
    return [Layer(name, parameters) for name, parameters in found.items()]


def _layer_name(parts: Iterable[str]) -> str:
    """Return `model.layers.3` for what is in a block, the module's name for what is outside."""
    parts = list(parts)
    return ".".join(parts[:3] if parts[1:2] == ["layers"] else parts[:-1])
