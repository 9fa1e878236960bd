"""Whether a step is thrown away: its loss or gradient norm is not finite, or far above those of the steps before.

Pure logic. What skipping means is up to the caller: weights, moments and expert biases stay, the data has been read.
Every rank must be given the same numbers (those of the whole step), so that all decide alike.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from ling.config.optimizer import SkipConfig
from ling.errors import CheckpointError, TrainingError

logger = logging.getLogger(__name__)

_SIGMA_OF_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
_LEAST_SPREAD = 1e-3
"""Of the centre: numbers that hardly vary make no spike of the next rounding error."""


class SpikeGuard:
    """Judges one step after the other.

    Finite numbers enter the history whether their step is skipped or not: after a lasting change of level the history
    follows, and steps are not skipped for ever.
    """

    def __init__(self, config: SkipConfig) -> None:
        self.config = config
        self.skipped = 0
        """Steps skipped since the run began."""
        self._nonfinite_in_row = 0
        self._history = {name: deque[float](maxlen=config.window) for name in ("loss", "gradient norm")}

    def spike_of(self, loss: float) -> str | None:
        """Return why a finite loss is a spike, or None; it does not enter the history."""
        return self._spike("loss", loss)

    def reason_to_skip(
        self, step: int, loss: float, grad_norm: float, lr: float, *, by_norm: bool = True
    ) -> str | None:
        """Return why update `step`, counted from 0, is to be skipped, or None; it enters the history.

        by_norm  whether a finite norm is judged and remembered; where updates do not wait for it, it is not
        Raises TrainingError if more steps in a row are not finite than `nonfinite_steps`.
        """
        numbers = {"loss": loss, "gradient norm": grad_norm}
        if not all(map(math.isfinite, numbers.values())):
            self._nonfinite_in_row += 1
            if self._nonfinite_in_row > self.config.nonfinite_steps:
                in_row = f" ({self._nonfinite_in_row} such steps in a row)" if self._nonfinite_in_row > 1 else ""
                raise TrainingError(
                    f"training diverges: at step {step + 1} the loss is {loss:g} and the gradient norm "
                    f"{grad_norm:g}{in_row}; begin again with optim.lr below {lr:g}"
                )
            reason: str | None = f"the loss is {loss:g} and the gradient norm {grad_norm:g}"
        else:
            self._nonfinite_in_row = 0
            if not by_norm:
                del numbers["gradient norm"]
            reason = next(filter(None, (self._spike(name, value) for name, value in numbers.items())), None)
            for name, value in numbers.items():
                self._history[name].append(value)
        if reason is not None:
            self.skipped += 1
            logger.warning("step %d is skipped (%d so far): %s", step + 1, self.skipped, reason)
        return reason

    def _spike(self, name: str, value: float) -> str | None:
        history = self._history[name]
        if self.config.rule == "off" or len(history) < self.config.at_least:
            return None
        if self.config.rule == "mad":
            centre = statistics.median(history)
            spread = _SIGMA_OF_MAD * statistics.median(abs(x - centre) for x in history)
        else:
            centre = statistics.fmean(history)
            spread = statistics.pstdev(history, centre)
        limit = centre + self.config.deviations * max(spread, _LEAST_SPREAD * abs(centre))
        return f"{name} {value:g} is above {limit:g}" if value > limit else None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON has it."""
        lists = {name: list(values) for name, values in self._history.items()}
        return {"skipped": self.skipped, "nonfinite_in_row": self._nonfinite_in_row, "history": lists}

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        """Go on from what `state` returned; CheckpointError that begins with `where` if it is anything else."""
        lists: Any
        skipped: Any
        in_row: Any
        lists, skipped, in_row = (state.get(key) for key in ("history", "skipped", "nonfinite_in_row"))
        known = isinstance(lists, Mapping) and lists.keys() == self._history.keys()
        if not (known and all(map(_is_finite_list, lists.values())) and _is_count(skipped) and _is_count(in_row)):
            raise CheckpointError(f"{where} does not hold the losses and gradient norms of steps; copy it again")
        for name in self._history:
            self._history[name] = deque(lists[name], maxlen=self.config.window)
        self.skipped, self._nonfinite_in_row = skipped, in_row


def _is_finite_list(values: object) -> bool:
    return isinstance(values, list) and all(type(x) is float and math.isfinite(x) for x in values)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
