"""One engine in a process of its own that decodes and reads prompts: run by benchmarks/cpu_vs_llamacpp.py.

    python -m benchmarks.cpu_race.side ling|llama.cpp|vllm|transformers MODEL OPTIONS

OPTIONS is JSON: threads, length (most tokens of one sequence), streams (most at once), vocabulary, and what belongs to
one engine. Each line of stdin is JSON and gets a line of stdout, with how many pages the disk had to give meanwhile:

    {"do": "prefill", "tokens": n}                                   {"seconds": [s]}
    {"do": "decode", "context": c, "tokens": n, "streams": b}        {"seconds": [s per step, n of them]}
    {"do": "experts", "streams": b, "tokens": n}                     {"unique": mean per layer and step}, ling alone

The first line says that the engine is ready: its version, how it holds its weights, and the seconds of importing and of
loading. Prompts are random, no two alike. This file needs the standard library alone, as llama.cpp's side does.
"""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, Protocol

BATCH = 512
"""Tokens of a prompt that are read at once, by whoever lets us choose."""
MODULES = {"ling": "ours", "llama.cpp": "in_llama_cpp", "vllm": "in_vllm", "transformers": "in_transformers"}
Asked = dict[str, Any]
Answer = Callable[[Asked], dict[str, Any]]


class Steps(Protocol):
    """An engine that works in steps."""

    def add(self, name: str, ids: list[int], *, known: bool) -> None:
        """Queue a prompt; `known`: its keys and values may be made up, only what comes after it is looked at."""

    def step(self) -> Collection[str]:
        """Run one step; return who got a token."""

    def drop(self, names: list[str]) -> None:
        """Forget requests."""


def main(engine: str, model: str, options: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    begin = time.perf_counter()
    module = import_module(f"benchmarks.cpu_race.{MODULES[engine]}")
    imported = time.perf_counter()
    told, answer = module.start(model, **json.loads(options))
    told["import_seconds"] = round(imported - begin, 2)
    told.setdefault("load_seconds", round(time.perf_counter() - imported, 2))
    print(json.dumps(told), file=answers, flush=True)
    for line in sys.stdin:
        before = _major_faults()
        answered = answer(json.loads(line))
        print(json.dumps(answered | {"major_faults": _major_faults() - before}), file=answers, flush=True)


def by_steps(engine: Steps, vocabulary: int) -> Answer:
    """Return what answers for an engine that works in steps."""
    draw = random.Random(0)

    def start(context: int, count: int, *, known: bool) -> list[str]:
        names = [str(draw.random()) for _ in range(count)]
        for name in names:
            engine.add(name, [draw.randrange(vocabulary) for _ in range(max(1, context))], known=known)
        return names

    def decode(context: int, tokens: int, streams: int) -> list[float]:
        names = start(context, streams, known=True)
        begun: set[str] = set()
        while len(begun) < streams:
            begun |= set(engine.step())
        seconds = []
        for _ in range(tokens):
            begin = time.perf_counter()
            grown = engine.step()
            seconds.append(time.perf_counter() - begin)
            assert len(grown) == streams, (grown, names)
        engine.drop(names)
        return seconds

    def prefill(tokens: int) -> list[float]:
        names = start(tokens, 1, known=False)
        begin = time.perf_counter()
        while not engine.step():
            pass
        seconds = time.perf_counter() - begin
        engine.drop(names)
        return [seconds]

    def answer(asked: Asked) -> dict[str, Any]:
        if asked["do"] == "prefill":
            return {"seconds": prefill(asked["tokens"])}
        return {"seconds": decode(asked["context"], asked["tokens"], asked["streams"])}

    return answer


def _major_faults() -> int:
    """Return how many pages this process has waited for the disk to give."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


if __name__ == "__main__":
    main(*sys.argv[1:])
