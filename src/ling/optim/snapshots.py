"""Constant, then merge: after which steps weights are kept for a mean, or for `ling merge`."""

from ling.errors import ConfigError


def snapshot_steps(steps: int, count: int, every: int) -> range:
    """Return the numbers of updates after which weights are kept: `count` of them, `every` apart, the last at the end.

    What matters most is how long a stretch of training they span (spec: training.md 9). A mean of them acts like a
    linear decay over `count * every` steps; `ling merge` emulates other decays from the same snapshots.
    Raises ConfigError if the run is too short.
    """
    if count * every > steps:
        raise ConfigError(f"{count} snapshots every {every} steps span {count * every} steps, but the run has {steps}")
    return range(steps - (count - 1) * every, steps + 1, every) if count else range(0)
