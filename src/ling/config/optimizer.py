"""Parts of the section `optim`: Muon, steps that are skipped, a batch that grows."""

from dataclasses import dataclass
from typing import Literal

from ling.config.fields import check_fields, shown
from ling.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MuonConfig:
    """Muon, for the matrices between embedding and head; read if `optim.method` is muon."""

    momentum: float = 0.95
    """Share of the sum of earlier gradients that a step keeps."""
    nesterov: bool = True
    """Add this step's gradient to the sum once more. With `optim.in_backward` and several microbatches it cannot be:
    their gradients are never there together."""
    iterations: int = 5
    """Newton-Schulz iterations."""
    update_rms: float = 0.2
    """Root mean square of an update at a learning rate of 1: about AdamW's, so that `optim.lr` and `optim.weight_decay`
    serve both (arXiv 2502.16982, section 2.2)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the iterations. On GPUs bfloat16 is many times as fast and serves as well."""
    chunk_mib: int = 256
    """Bound of the temporary memory; experts are taken a few at a time. One matrix may need more."""

    def __post_init__(self) -> None:
        check_fields(self, "optim.muon")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optim.muon.momentum must lie in [0, 1), got {self.momentum}")
        for name in ("iterations", "update_rms", "chunk_mib"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optim.muon.{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipConfig:
    """Steps whose gradient is thrown away: weights, moments and expert biases stay as they are.

    With `optim.in_backward` a spike is one of the loss alone, and what was done before stays done.
    """

    rule: Literal["off", "mad", "sigma"] = "off"
    """A spike is a loss or a gradient norm above the median by `deviations` times 1.4826 median absolute deviations
    (mad), or above the mean by as many standard deviations (sigma)."""
    deviations: float = 6.0
    """How far out a spike begins."""
    window: int = 128
    """Steps before this one that are looked at; spikes are among them, so a lasting change is soon no spike."""
    at_least: int = 32
    """Steps that must have been before anything is called a spike."""
    nonfinite_steps: int = 0
    """Steps in a row that are skipped because a loss or gradient is not finite; one more ends the run."""

    def __post_init__(self) -> None:
        check_fields(self, "optim.skip")
        if self.deviations <= 0:
            raise ConfigError(f"optim.skip.deviations must be positive, got {self.deviations}")
        if not 2 <= self.at_least <= self.window:
            raise ConfigError(
                f"optim.skip.at_least must lie between 2 and optim.skip.window {self.window}, got {self.at_least}"
            )
        if self.nonfinite_steps < 0:
            raise ConfigError(f"optim.skip.nonfinite_steps must not be negative, got {self.nonfinite_steps}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRampConfig:
    """A global batch that grows in equal stages to `train.global_batch_size`."""

    start: int = 0
    """Sequences of the first step; 0: no ramp."""
    increment: int = 0
    """Sequences that each stage adds."""
    sequences: int = 0
    """Sequences that all stages before the last read together, each the same share."""

    def __post_init__(self) -> None:
        check_fields(self, "optim.batch_ramp")
        if any(value < 0 for value in (self.start, self.increment, self.sequences)):
            raise ConfigError("optim.batch_ramp.start, increment and sequences must not be negative")
        if len({bool(value) for value in (self.start, self.increment, self.sequences)}) > 1:
            raise ConfigError("optim.batch_ramp.start, increment and sequences go together; set all three, or none")

    def check_end(self, global_batch_size: int) -> None:
        """Raise ConfigError unless whole stages lead from `start` to `global_batch_size`."""
        rest = global_batch_size - self.start
        if self.start and (rest <= 0 or rest % self.increment):
            raise ConfigError(
                f"optim.batch_ramp from {self.start} by {self.increment} does not reach train.global_batch_size "
                f"{global_batch_size}; the increment must divide their difference"
            )


def read_multiplier(text: str) -> tuple[str, float]:
    """Return (pattern, factor) of an entry of `optim.lr_multipliers`; ConfigError unless it is `pattern=factor`."""
    pattern, _, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not pattern or not 0 < value < float("inf"):
        raise ConfigError(
            f"optim.lr_multipliers has {shown(text)}; an entry is pattern=factor with a positive factor, such as "
            "embeddings=0.1 (optim.freeze is for what must not move)"
        )
    return pattern, value
