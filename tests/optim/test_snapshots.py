"""Which weights are kept for a mean."""

import pytest

from ling.config.training import TrainConfig
from ling.errors import ConfigError
from ling.optim.snapshots import snapshot_steps
from ling.train.averaging import is_snapshot_step


@pytest.mark.parametrize(("steps", "count", "every"), [(100, 4, 10), (100, 1, 7), (37, 3, 5), (12, 12, 1), (9, 0, 3)])
def test_they_are_those_that_a_run_averages(steps: int, count: int, every: int) -> None:
    train = TrainConfig(steps=steps, average_last=count, average_every=every)
    averaged = [step for step in range(1, steps + 1) if is_snapshot_step(step, train)]
    assert list(snapshot_steps(steps, count, every)) == averaged
    assert len(averaged) == count


def test_a_run_that_is_too_short_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 snapshots every 10 steps span 40 steps, but the run has 39"):
        snapshot_steps(39, 4, 10)
