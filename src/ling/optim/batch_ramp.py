"""Sequences per step, where the batch grows: a pure function of the step, in exact integers.

Stage i of n has `start + i * increment` sequences per step and lasts until i + 1 n-ths of the ramp's sequences have
been read; the step under way at that point belongs to it. Megatron's `rampup-batch-size` is the same rule.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from ling.config.optimizer import BatchRampConfig
from ling.errors import ConfigError


class Stage(NamedTuple):
    """Steps of one size."""

    first_step: int
    first_sequence: int
    """Sequences read before it."""
    batch_size: int


@dataclass(frozen=True, slots=True)
class BatchRamp:
    """Stages in order; the last has no end."""

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, config: BatchRampConfig, global_batch_size: int, multiple_of: int = 1) -> "BatchRamp":
        """Lay the stages out; without a ramp there is one.

        multiple_of  sequences that go through all ranks at once: data-parallel size times microbatch
        Raises ConfigError if a step cannot be cut into those.
        """
        config.check_end(global_batch_size)
        stages, step, consumed = [], 0, 0
        n = (global_batch_size - config.start) // config.increment if config.start else 0
        for i in range(n):
            end = -(-(i + 1) * config.sequences // n)
            if consumed < end:
                size = config.start + i * config.increment
                stages.append(Stage(step, consumed, size))
                taken = -(-(end - consumed) // size)
                step, consumed = step + taken, consumed + taken * size
        stages.append(Stage(step, consumed, global_batch_size))
        for stage in stages:
            if stage.batch_size % multiple_of:
                raise ConfigError(
                    f"a step of {stage.batch_size} sequences cannot be cut into {multiple_of}, which all ranks take at "
                    "once (data-parallel size times train.micro_batch_size); make train.global_batch_size, "
                    f"optim.batch_ramp.start and optim.batch_ramp.increment multiples of {multiple_of}"
                )
        return cls(tuple(stages))

    def batch_size_at(self, step: int) -> int:
        """Return the sequences of update `step`, counted from 0."""
        return self._stage(step).batch_size

    def consumed_before(self, step: int) -> int:
        """Return the sequences read by the updates before `step`."""
        stage = self._stage(step)
        return stage.first_sequence + (step - stage.first_step) * stage.batch_size

    def starts(self, step: int, each: int, rank: int, ranks: int) -> range:
        """Return where each microbatch of `each` sequences begins, of those that one of `ranks` ranks takes."""
        first = self.consumed_before(step)
        return range(first + rank * each, first + self.batch_size_at(step), ranks * each)

    def steps_for(self, sequences: int) -> int:
        """Return the updates that read `sequences` sequences, the last perhaps more."""
        stage = max((s for s in self.stages if s.first_sequence < sequences), default=self.stages[0])
        return stage.first_step + max(0, -(-(sequences - stage.first_sequence) // stage.batch_size))

    def _stage(self, step: int) -> Stage:
        return self.stages[bisect_right(self.stages, step, key=lambda stage: stage.first_step) - 1]
