"""Fine-tuning the model in the package: do held-out answers get better, and what is forgotten?

    python -m benchmarks.run sft_embedded

`ling finetune sft_tiny_cpu` on generated conversations of the two tasks that the model is weakest at, with some of all
tasks beside them. Prompts that are asked before and after are kept from the training data by the generator's own split.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.results import describe_machine, save
from ling.checkpoint import load_model
from ling.cli.demo.evaluate import run_tasks
from ling.data.books import split_books
from ling.data.dialogues import TASKS, training_dialogue
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.eval.bits_per_byte import bits_per_byte
from ling.tokenizer import Tokenizer

WEAK = ("arithmetic", "comparison")
CONVERSATIONS = 12_000
LEARNING_RATE = "5e-4"
WEIGHTS = {task: 6.0 if task in WEAK else 1.0 for task in TASKS}
HELDOUT_PERCENT = 10.0
"""Of the books, as in training of the model."""


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "train.jsonl"), Path(scratch, "run")
        write_conversations(data)
        before = measure(bundled_directory())
        start = time.monotonic()
        command = ["finetune", "sft_tiny_cpu", str(data), "--out", str(out)]
        subprocess.run(
            [sys.executable, "-m", "ling", *command, f"optim.lr={LEARNING_RATE}", "run.evaluate_every=0",
             "train.micro_batch_size=8"], check=True,
        )  # fmt: skip
        minutes = (time.monotonic() - start) / 60
        after = measure(out / "export")
    weak = {when: weak_percent(found) for when, found in (("before", before), ("after", after))}
    numbers: dict[str, Any] = {
        "conversations": CONVERSATIONS,
        "weak_tasks_percent": weak,
        "before": before,
        "after": after,
        "minutes": round(minutes, 2),
    }
    print(describe_machine())
    print(json.dumps(numbers, indent=2))
    print(save("sft-embedded", numbers).name)
    sys.exit(0 if weak["after"] > weak["before"] else 1)


def weak_percent(found: dict[str, Any]) -> float:
    return sum(found["tasks"][task] for task in WEAK) / len(WEAK)


def write_conversations(path: Path) -> None:
    """Write conversations in the published form, one a line."""
    random = Random("fine-tuning the model in the package")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(CONVERSATIONS):
            dialogue = training_dialogue(random, WEIGHTS)
            record: dict[str, Any] = {"messages": list(dialogue.messages)}
            if dialogue.tools:
                record["tools"] = list(dialogue.tools)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def measure(directory: Path) -> dict[str, Any]:
    """Return right answers per task in percent, and bits per byte of the held-out books."""
    llm = LLM(load_model(directory, dtype=torch.float32), Tokenizer.from_directory(directory))
    _, heldout = split_books(HELDOUT_PERCENT)
    bits = bits_per_byte(llm.negative_log_likelihoods, llm.tokenizer, heldout, window=512, stride=256)
    results = run_tasks(llm, 1)
    return {"tasks": {r.task: round(r.correct_percent, 1) for r in results}, "bits_per_byte": round(bits.value, 4)}


if __name__ == "__main__":
    main()
