"""Load time and peak memory of a random checkpoint of about a billion parameters.

    python -m benchmarks.run load_checkpoint

Each load runs in a process of its own; peak memory is the operating system's figure for that process, and beside it
stand the bytes the model itself holds. The file was just written, so it comes from the page cache.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import describe_machine, save
from ling.checkpoint import load_model, save_model
from ling.checkpoint.save import ExportFormat
from ling.config import ModelConfig
from ling.model import CausalLM, init_weights
from ling.scaling.parameters import count_parameters

CONFIG = ModelConfig(
    vocab_size=32768, hidden_size=1024, num_hidden_layers=10, intermediate_size=2560, num_attention_heads=8,
    num_experts=128, num_experts_per_tok=4, moe_intermediate_size=256, rotary_dim=64, num_nextn_predict_layers=0,
    pad_token_id=None, eos_token_id=None,
)  # fmt: skip
LOADS = (("bfloat16", "bfloat16", "dequantize"), ("bfloat16", "float32", "dequantize"),
         ("float8", "bfloat16", "keep"), ("float8", "bfloat16", "dequantize"))  # fmt: skip
REPEATS = 3


def main() -> None:
    if len(sys.argv) > 1:
        return print(json.dumps(load_once(*sys.argv[1:])))
    counts = count_parameters(CONFIG)
    numbers: dict[str, Any] = {"parameters": counts.total}
    with tempfile.TemporaryDirectory() as scratch:
        model = init_weights(CausalLM(CONFIG).bfloat16(), torch.Generator().manual_seed(0))
        for precision in ("bfloat16", "float8"):
            start = time.perf_counter()
            save_model(model, Path(scratch, precision), export=ExportFormat(precision=precision))
            numbers[f"save_{precision}_seconds"] = round(time.perf_counter() - start, 2)
        del model
        for precision, dtype, fp8 in LOADS:
            runs = [in_process(str(Path(scratch, precision)), dtype, fp8) for _ in range(REPEATS)]
            best = min(runs, key=lambda r: r["seconds"])
            numbers[f"{precision}_to_{dtype}_{fp8}"] = best
            print(f"{precision} file, {dtype} model, {fp8}: {best}", flush=True)
    print(describe_machine())
    print(save("load-checkpoint", numbers).name)


def in_process(directory: str, dtype: str, fp8: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load_checkpoint", directory, dtype, fp8]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def load_once(directory: str, dtype: str, fp8: str) -> dict[str, float]:
    before = peak_mib()
    start = time.perf_counter()
    model = load_model(directory, dtype=getattr(torch, dtype), fp8=fp8)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 2**20
    largest = max(t.nbytes for t in model.parameters()) / 2**20
    return {
        "seconds": round(seconds, 2),
        "peak_mib": round(peak_mib(), 1),
        "before_mib": round(before, 1),
        "model_mib": round(held, 1),
        "largest_tensor_mib": round(largest, 1),
        "peak_above_model_mib": round(peak_mib() - before - held, 1),
    }


def peak_mib() -> float:
    """Return this process's own peak; getrusage would start from its parent's."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


if __name__ == "__main__":
    main()
