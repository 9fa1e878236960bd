"""Contenders asked the same, in turns: all resident and in short bursts, or one at a time, A-B-A-B."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu_race.bursts import Bursts
from benchmarks.cpu_race.contenders import Contender
from benchmarks.cpu_race.figures import figures
from benchmarks.cpu_race.processes import Side, forget, running, warm
from benchmarks.cpu_race.side import Asked

Keep = Callable[[dict[str, Any]], None]
"""Takes the figures so far; called after each round, so that a run that is stopped loses one."""
_WARM_UP_STEPS = 4
_EXPERT_STEPS = 8


@dataclass(frozen=True)
class Turns:
    """How contenders take turns.

    alternate  one engine in memory at a time; the files of the others are dropped and its own read before
    rounds     in which everybody is asked everything; before them, one that warms up
    repeats    bursts of each part in a round, where engines alternate
    """

    alternate: bool
    rounds: int
    repeats: int = 2


def meet(contenders: dict[str, Contender], asked: dict[str, Asked], turns: Turns, keep: Keep) -> None:
    """Ask all contenders everything that fits into memory, the first one being us."""
    fitting, left_out = split_by_memory(contenders, asked, together=not turns.alternate)
    notes: dict[str, Any] = {"left_out": left_out} if left_out else {}
    bursts = {name: {part: Bursts() for part in fitting[name]} for name in contenders}
    told: dict[str, Any] = {}
    unique: dict[str, float] = {}

    def finish(name: str, side: Side) -> None:
        told[name] = _told(told.get(name), side)
        if contenders[name].engine == "ling" and any(q.get("streams", 1) > 1 for q in fitting[name].values()):
            for count in sorted({q["streams"] for q in fitting[name].values() if q["do"] == "decode"}):
                answer = side.ask({"do": "experts", "streams": count, "tokens": _EXPERT_STEPS})
                unique[str(count)] = answer["unique"]

    def tell() -> None:
        keep(figures(contenders, fitting, bursts, unique) | {"told": told} | notes)

    if turns.alternate:
        for index in range(turns.rounds):
            for name in contenders:
                with alone(contenders, name, fitting[name]) as side:
                    for question in fitting[name].values():
                        side.ask({**question, "tokens": min(_WARM_UP_STEPS, question["tokens"])})
                    for _ in range(turns.repeats):
                        for part, question in fitting[name].items():
                            told[name] = told.get(name, {}) | _memory(bursts[name][part].add(side, question, index))
                    finish(name, side)
            tell()
        return
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(running(c.engine, c.model, _options(c, fitting[name])))
            for name, c in contenders.items()
        }
        for index in range(-1, turns.rounds):
            order = list(contenders)[:: 1 if index % 2 == 0 else -1]  # who begins changes with every round
            for part in asked:
                for name in (n for n in order if part in fitting[n]):
                    into = bursts[name][part] if index >= 0 else Bursts()
                    told[name] = told.get(name, {}) | _memory(into.add(sides[name], fitting[name][part], max(0, index)))
            if index == 0:
                for name, side in sides.items():
                    finish(name, side)
            if index >= 0:
                tell()


def alone(contenders: dict[str, Contender], name: str, asked: dict[str, Asked]) -> AbstractContextManager[Side]:
    """Run one contender, whose files are in the page cache and those of others are not."""
    contender = contenders[name]
    for other in {c.model for c in contenders.values()} - {contender.model}:
        forget(other)
    warm(contender.model)
    return running(contender.engine, contender.model, _options(contender, asked))


def split_by_memory(
    contenders: dict[str, Contender], asked: dict[str, Asked], *, together: bool, memory: int | None = None
) -> tuple[dict[str, dict[str, Asked]], dict[str, str]]:
    """Return what each contender is asked, and why it is not asked the rest.

    together  all are in memory at once
    memory    bytes of the machine; None: looked up
    """
    memory = memory or _total_memory()
    fitting: dict[str, dict[str, Asked]] = {name: {} for name in contenders}
    left_out = {}
    for name, contender in contenders.items():
        for part, question in asked.items():
            length = _length(question) * question.get("streams", 1)
            needed = sum(c.needs_bytes(length) for c in (contenders.values() if together else [contender]))
            if needed <= memory:
                fitting[name][part] = question
            else:
                left_out[f"{name}, {part}"] = f"needs {needed / 1e9:.1f} GB of {memory / 1e9:.1f}"
    return fitting, left_out


def _length(question: Asked) -> int:
    return int(question.get("context", 0) + question["tokens"] + 1)


def _options(contender: Contender, asked: dict[str, Asked]) -> dict[str, Any]:
    sizes = {
        "length": max(_length(question) for question in asked.values()) + _WARM_UP_STEPS,
        "streams": max(question.get("streams", 1) for question in asked.values()),
        "vocabulary": contender.config.vocab_size,
    }
    return contender.options | sizes


def _memory(answer: dict[str, Any]) -> dict[str, Any]:
    return {"memory_gib": answer["memory_gib"]} if "memory_gib" in answer else {}


def _told(before: dict[str, Any] | None, side: Side) -> dict[str, Any]:
    """Return what a side said at its start, the seconds of every start in a list."""
    before = before or {}
    seconds = {name: [*before.get(name, []), side.told[name]] for name in ("import_seconds", "load_seconds")}
    return before | side.told | seconds


def _total_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
