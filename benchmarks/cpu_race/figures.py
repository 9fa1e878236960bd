"""Figures by part and contender, what they say of each other, and whether the targets are met."""

from typing import Any

from benchmarks.cpu_race.bursts import Bursts, ratio
from benchmarks.cpu_race.contenders import Contender
from benchmarks.cpu_race.side import Asked

DECODE_RATIO, PREFILL_RATIO = 1.15, 1.25
BANDWIDTH_PERCENT = {8: 70, 4: 60}
STREAMS_TIMES = 1.6
BYTES_PERCENT = 80
LOAD_SECONDS = 10.0


def figures(
    contenders: dict[str, Contender],
    asked: dict[str, dict[str, Asked]],
    bursts: dict[str, dict[str, Bursts]],
    unique: dict[str, float],
) -> dict[str, Any]:
    """Return each contender's figures by part, and how many times faster the first one is than each other.

    asked   by contender and part, as `bursts`
    unique  routed experts that a layer reads in a step, by the number of answers at once
    """
    found: dict[str, Any] = {}
    first = next(iter(contenders))
    for name, contender in contenders.items():
        for part, question in asked[name].items():
            entry = found.setdefault(part, {})
            tokens = question["streams"] if question["do"] == "decode" else question["tokens"]
            experts = unique.get(str(question.get("streams")), float(contender.config.num_experts_per_tok))
            entry[name] = bursts[name][part].summary(tokens, contender.step_bytes(question, experts))
            if name != first and first in entry:
                entry.setdefault("ratio", {})[name] = _ratio(
                    bursts[first][part], bursts[name][part], entry, first, name
                )
    _compare_streams(found, list(contenders))
    return found | ({"unique_experts_per_layer": unique} if unique else {})


def _ratio(ours: Bursts, theirs: Bursts, entry: dict[str, Any], first: str, name: str) -> dict[str, float]:
    """Return the ratio of speeds, and beside it that of the bytes which a step reads."""
    found = ratio(ours, theirs)
    sizes = [entry[who].get("gb_per_step") for who in (first, name)]
    if not all(sizes):
        return found
    in_bytes = sizes[1] / sizes[0]
    return found | {"bytes": round(in_bytes, 3), "percent_of_bytes": round(100 * found["median"] / in_bytes)}


def _compare_streams(found: dict[str, Any], names: list[str]) -> None:
    """Put into each entry of many answers at once how many times the tokens of one they are."""
    one = found.get(streams_part(1), {})
    for part, entry in found.items():
        for name in names:
            if part.endswith(streams_part(0)[1:]) and name in entry and name in one:
                many, single = (e[name]["tokens_per_second"]["median"] for e in (entry, one))
                entry[name]["times_one"] = round(many / single, 2)


def streams_part(count: int) -> str:
    return f"{count} at once"


def lines(key: str, found: dict[str, Any]) -> list[str]:
    """Return what a person follows a run by: a line for each contender in each part, with the ratio of speeds."""
    told = []
    for part, entry in found.items():
        for name, of in entry.items() if isinstance(entry, dict) else ():
            if not isinstance(of, dict) or "median_ms" not in of:
                continue
            line = f"{key}, {part}, {name}: {of['median_ms']:g} ms (fastest {of['fastest_ms']:g}), "
            line += f"{of['tokens_per_second']['median']:g} tok/s"
            if "percent_of_bandwidth" in of:
                line += f", {of['gb_per_second']['median']:g} GB/s, "
                line += f"{of['percent_of_bandwidth']['median']} % of the bandwidth"
            if (ours := _at(entry, "ratio", name, "median")) is not None:
                line += f"; ours {ours:g}x"
            told.append(line)
    return told


def verdicts(numbers: dict[str, Any]) -> list[str]:
    """Return a line for each target that the numbers speak of: what it is, what was measured, met or missed."""
    lines = []

    def judge(what: str, measured: float | None, least: float, *, most: bool = False) -> None:
        if measured is not None:
            met = measured <= least if most else measured >= least
            lines.append(f"{'met' if met else 'MISSED'}: {what}: {measured:g}, target {least:g}")

    for bits in (8, 4):
        beside = numbers.get(f"int{bits}", {})
        for part, entry in beside.items():
            if part.startswith(("decode at", "prefill")):
                least = DECODE_RATIO if part.startswith("decode") else PREFILL_RATIO
                judge(f"int{bits}, {part}, against llama.cpp", _at(entry, "ratio", "llama.cpp", "median"), least)
            if part.startswith("decode at"):
                share = _at(entry, "ling", "percent_of_bandwidth", "median")
                judge(f"int{bits}, {part}, % of the bandwidth beside it", share, BANDWIDTH_PERCENT[bits])
            if part.endswith("at once") and not part.startswith("1 "):
                judge(f"int{bits}, {part}, times one", _at(entry, "ling", "times_one"), STREAMS_TIMES)
        for part, entry in numbers.get(f"int{bits} curve", {}).items():
            if part.startswith("decode at"):
                share = _at(entry, "ratio", "dense", "percent_of_bytes")
                judge(f"int{bits}, {part}, against dense, % of the ratio of bytes", share, BYTES_PERCENT)
        seconds = numbers.get(f"int{bits} load", {}).get("load_seconds")
        judge(f"int{bits}, load, s", None if seconds is None else max(seconds), LOAD_SECONDS, most=True)
    return lines


def _at(entry: Any, *keys: str) -> Any:
    for key in keys:
        entry = entry.get(key) if isinstance(entry, dict) else None
    return entry
