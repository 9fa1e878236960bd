"""Why the demo trains on one thread: its speed with one and two, alone on the machine and beside a busy process.

python -m benchmarks.run demo_threads
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.results import describe_machine, save
from ling.cli.demo.prepare import prepare
from ling.config.recipe import load_recipe
from ling.train.loop import Training

STEPS = 50
WARM_UP = 10
ROUNDS = 3
NEIGHBOUR = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    if len(sys.argv) > 1:
        return print(tokens_per_second(int(sys.argv[1])))
    numbers: dict[str, float] = {}
    for neighbour in ("alone", "beside a busy process"):
        busy = subprocess.Popen(NEIGHBOUR) if neighbour != "alone" else None
        try:
            speeds = {threads: [in_process(threads)] for threads in (1, 2)}
            for _ in range(ROUNDS - 1):
                for threads, found in speeds.items():
                    found.append(in_process(threads))
        finally:
            if busy is not None:
                busy.kill()
        for threads, found in speeds.items():
            numbers[f"{neighbour}_{threads}_threads_tokens_per_second_median"] = round(statistics.median(found))
        ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
        numbers[f"{neighbour}_ratio_of_2_to_1_median"] = round(statistics.median(ratios), 2)
    print(describe_machine())
    print(json.dumps(numbers, indent=2))
    print(save("demo-threads", numbers).name)


def in_process(threads: int) -> float:
    command = [sys.executable, "-m", "benchmarks.demo_threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def tokens_per_second(threads: int) -> float:
    torch.set_num_threads(threads)
    settings = [f"train.steps={STEPS}", "train.average_last=0", "train.checkpoint_every=1000"]
    recipe = load_recipe(preset_name="demo", overrides=settings)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(recipe, Path(scratch, "tokenizer"))
        steps = list(Training(recipe, Path(scratch), prepared.read_batch).run())[WARM_UP:]
    return sum(s.tokens for s in steps) / sum(s.step_seconds for s in steps)


if __name__ == "__main__":
    main()
