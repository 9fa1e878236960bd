"""What a contender did in one part, the bandwidth beside it, and how figures come out of that."""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.cpu_race.processes import Side
from benchmarks.cpu_race.side import Asked

_BANDWIDTH_BYTES = 2**28
"""Well beyond any cache, and little beside a model."""
_PASSES = 10
_GAP_SECONDS = 0.2
"""Threads that wait actively have gone to sleep by then."""


@dataclass
class Bursts:
    """Steps of one contender in one part."""

    seconds: list[list[float]] = field(default_factory=list)
    """Of each step, by rounds."""
    bandwidths: list[float] = field(default_factory=list)
    """GB/s beside each burst."""
    major_faults: int = 0
    """Pages that the disk had to give meanwhile: the model was not all in memory."""

    def add(self, side: Side, question: Asked, index: int) -> dict[str, Any]:
        """Ask once, in round `index`, with the bandwidth before and behind; return the answer."""
        before = bandwidth()
        answer = side.ask(question)
        time.sleep(_GAP_SECONDS)
        self.bandwidths.append(max(before, bandwidth()))
        self.seconds += [[] for _ in range(index + 1 - len(self.seconds))]
        self.seconds[index] += answer["seconds"]
        self.major_faults += answer["major_faults"]
        return answer

    def summary(self, tokens: int, nbytes: float) -> dict[str, Any]:
        """Return the figures of steps that each give `tokens` tokens and read `nbytes` bytes; 0: not looked at."""
        fastest = min(min(steps) for steps in self.seconds)
        median = statistics.median(step for steps in self.seconds for step in steps)
        # The fastest step had the machine as much to itself as the fastest pass over memory.
        limits = {"fastest": max(self.bandwidths), "median": statistics.median(self.bandwidths)}
        found: dict[str, Any] = {
            "fastest_ms": round(1e3 * fastest, 2),
            "median_ms": round(1e3 * median, 2),
            "steps": sum(map(len, self.seconds)),
            "tokens_per_second": {"fastest": round(tokens / fastest, 2), "median": round(tokens / median, 2)},
            "bandwidth_beside_gb_per_second": {name: round(limit, 1) for name, limit in limits.items()},
        }
        if nbytes:
            rates = {"fastest": nbytes / fastest / 1e9, "median": nbytes / median / 1e9}
            found |= {
                "gb_per_step": round(nbytes / 1e9, 4),
                "gb_per_second": {name: round(rate, 1) for name, rate in rates.items()},
                "percent_of_bandwidth": {name: round(100 * rate / limits[name]) for name, rate in rates.items()},
            }
        return found | ({"major_faults": self.major_faults} if self.major_faults else {})


def ratio(ours: Bursts, theirs: Bursts) -> dict[str, float]:
    """Return how many times faster we are: median, least and most of the rounds' medians, and of the fastest steps."""
    ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(ours.seconds, theirs.seconds)]
    found = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    found["of_fastest"] = min(map(min, theirs.seconds)) / min(map(min, ours.seconds))
    return {name: round(value, 3) for name, value in found.items()}


def bandwidth() -> float:
    """Return the GB/s at which all threads read memory, the best of a few passes of two kinds."""
    values = torch.ones(_BANDWIDTH_BYTES // 4)
    low, high = values.chunk(2)
    best = float("inf")
    for read in (values.amax, lambda: torch.dot(low, high)) * _PASSES:
        begin = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - begin)
    return _BANDWIDTH_BYTES / best / 1e9
