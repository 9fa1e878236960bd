"""Numbers of many requests, under the names that `vllm bench serve` gives them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ling.cli.bench.load import Outcome
from ling.errors import ConfigError

METRICS = {
    "ttft": "until the first token",
    "tpot": "per token after the first",
    "itl": "between pieces",
    "e2el": "until the whole answer",
}


def read_metrics(text: str) -> list[str]:
    """Read a list such as `ttft,tpot`. Raises ConfigError for a name that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METRICS]:
        raise ConfigError(f"unknown metric {unknown[0]}; known: {', '.join(METRICS)}")
    return names


def read_percentiles(text: str) -> list[float]:
    """Read a list such as `50,99`. Raises ConfigError for what is no percentage."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"--metric-percentiles takes numbers parted by commas, got {text}") from None
    if wrong := [value for value in values if not 0 <= value <= 100]:
        raise ConfigError(f"a percentile lies between 0 and 100, got {wrong[0]:g}")
    return values


def figures(outcomes: Sequence[Outcome], seconds: float, percentiles: Sequence[float]) -> dict[str, Any]:
    """Return counts, rates per second, and mean, median and percentiles of each metric in milliseconds."""
    done = [o for o in outcomes if o.done]
    output = sum(o.output_tokens for o in done)
    total = output + sum(o.prompt_tokens for o in done)
    result: dict[str, Any] = {
        "duration": seconds,
        "completed": len(done),
        "failed": sum(o.error is not None for o in outcomes),
        "unfinished": sum(not o.done and o.error is None for o in outcomes),
        "errors": dict(Counter(o.error for o in outcomes if o.error is not None).most_common()),
        "total_input_tokens": total - output,
        "total_output_tokens": output,
        "request_throughput": len(done) / seconds if seconds else 0.0,
        "output_throughput": output / seconds if seconds else 0.0,
        "total_token_throughput": total / seconds if seconds else 0.0,
        "tokens_counted_as_pieces": any(o.counted_pieces for o in done),
    }
    for name, values in _samples(done).items():
        result |= spread(values, f"{name}_ms", percentiles, scale=1e3)
    return result


def spread(values: Sequence[float], name: str, percentiles: Sequence[float], *, scale: float = 1.0) -> dict[str, float]:
    """Return `mean_`, `median_`, `std_` and `pN_` of values; nothing for none."""
    if not values:
        return {}
    scaled = np.asarray(values) * scale
    found = {f"mean_{name}": scaled.mean(), f"median_{name}": np.median(scaled), f"std_{name}": scaled.std()}
    found |= {f"p{p:g}_{name}": np.percentile(scaled, p) for p in percentiles}
    return {key: float(value) for key, value in found.items()}


def _samples(done: Sequence[Outcome]) -> dict[str, list[float]]:
    """Return the seconds behind each metric; an answer of one token has no time per further one."""
    return {
        "ttft": [o.ttft for o in done],
        "tpot": [(o.latency - o.ttft) / (o.output_tokens - 1) for o in done if o.output_tokens > 1],
        "itl": [gap for o in done for gap in o.gaps],
        "e2el": [o.latency for o in done],
    }
