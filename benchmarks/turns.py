"""Two sides measured in turns: what disturbs a shared machine disturbs both, and ratios of neighbours cancel it."""

import statistics
from collections.abc import Callable
from typing import Any

Measure = Callable[[int], float]
"""Takes the number of the round, returns a speed; both sides get the same work in the same round."""


def take_turns(sides: dict[str, Measure], *, rounds: int, warmups: int = 1) -> dict[str, Any]:
    """Return the median tokens per second of two sides, and median and range of first over second by rounds.

    The side that begins changes with every round. Rounds that warm up have work of their own and are not counted.
    """
    first, second = sides
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(warmups + rounds):
        for name in (first, second) if i % 2 == 0 else (second, first):
            speed = sides[name](i)
            if i >= warmups:
                speeds[name].append(speed)
    found: dict[str, Any] = {f"{name}_tokens_per_second": round(statistics.median(s), 1) for name, s in speeds.items()}
    ratios = [a / b for a, b in zip(speeds[first], speeds[second], strict=True)]
    return found | {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "pairs": rounds,
    }
