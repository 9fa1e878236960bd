"""The demo from three seeds: what it promises has to hold in the worst; and what averaging snapshots gains in each.

python -m benchmarks.run demo_seeds
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import describe_machine, save
from ling.checkpoint import load_model
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.cli.demo.evaluate import gated_percent, run_tasks
from ling.config.recipe import recipe_from_tree
from ling.data.books import split_books
from ling.engine.llm import LLM
from ling.eval.bits_per_byte import bits_per_byte
from ling.tokenizer import Tokenizer
from ling.train.state import latest_checkpoint

SEEDS = (0, 1, 2)


def main() -> None:
    torch.set_num_threads(1)
    runs = [run(seed) for seed in SEEDS]
    numbers: dict[str, Any] = {
        "worst_gated_percent": min(r["gated_percent"] for r in runs),
        "worst_bits_per_byte": max(r["bits_per_byte"]["bfloat16"] for r in runs),
        "byte_ngram_2": runs[0]["bits_per_byte"]["byte_ngram_2"],
        "longest_minutes": round(max(r["seconds"]["in all"] for r in runs) / 60, 2),
        "all_promises_held": all(p["held"] for r in runs for p in r["promises"]),
        "seeds": {seed: summary(r) for seed, r in zip(SEEDS, runs, strict=True)},
    }
    print(describe_machine())
    print(json.dumps(numbers, indent=2))
    print(save("demo-seeds", numbers).name)
    sys.exit(0 if numbers["all_promises_held"] else 1)


def run(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "demo")
        command = [sys.executable, "-m", "ling", "demo", "--no-chat", "--seed", str(seed), "--out", str(out)]
        subprocess.run(command, check=True)
        report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
        return report | {"last_weights": measure_last_weights(out)}


def measure_last_weights(out: Path) -> dict[str, float]:
    """Return what the run would have ended with if its snapshots had not been averaged."""
    recipe = recipe_from_tree(json.loads((out / "recipe.json").read_text(encoding="utf-8")))
    latest = latest_checkpoint(out / "checkpoints")
    assert latest is not None
    to_safetensors(open_pieces(latest), out / "last", ExportFormat(precision="bfloat16"))
    llm = LLM(load_model(out / "last", dtype=torch.float32), Tokenizer.from_directory(out / "last"))
    _, heldout = split_books(recipe.data.heldout_percent)
    window = recipe.data.max_document_tokens
    score = llm.negative_log_likelihoods
    return {
        "gated_percent": gated_percent(run_tasks(llm, recipe.data.dialogue_level)),
        "bits_per_byte": bits_per_byte(score, llm.tokenizer, heldout, window=window, stride=window // 2).value,
    }


def summary(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "gated_percent": report["gated_percent"],
        "tasks": {t["task"]: round(t["percent"], 1) for t in report["tasks"]},
        "last_weights": {k: round(v, 4) for k, v in report["last_weights"].items()},
        "bits_per_byte": {k: round(v, 4) for k, v in report["bits_per_byte"].items()},
        "speculation": {k: report["speculation"][k] for k in ("same_text", "acceptance_percent", "speedup")},
        "training_tokens_per_second": round(report["training"]["tokens_per_second"]),
        "minutes": round(report["seconds"]["in all"] / 60, 2),
    }


if __name__ == "__main__":
    main()
