"""The demo from three seeds: what it promises has to hold in the worst.

python -m benchmarks.run demo_seeds
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import describe_machine, save

SEEDS = (0, 1, 2)


def main() -> None:
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
        return json.loads((out / "report.json").read_text(encoding="utf-8"))


def summary(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "gated_percent": report["gated_percent"],
        "tasks": {t["task"]: round(t["percent"], 1) for t in report["tasks"]},
        "bits_per_byte": {k: round(v, 4) for k, v in report["bits_per_byte"].items()},
        "speculation": {k: report["speculation"][k] for k in ("same_text", "acceptance_percent", "speedup")},
        "training_tokens_per_second": round(report["training"]["tokens_per_second"]),
        "minutes": round(report["seconds"]["in all"] / 60, 2),
    }


if __name__ == "__main__":
    main()
