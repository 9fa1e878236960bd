"""How long `ling generate` takes from the start of its process to its first token, with a checkpoint of 1 GB.

    python -m benchmarks.run start_time

Random weights in bfloat16, read into float32; their file has just been written, so its pages are in memory.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import write_random
from benchmarks.results import describe_machine, save
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.config import ModelConfig
from ling.engine.bundled import bundled_directory

RUNS = 3
TARGET_SECONDS = 10.0
CONFIG = ModelConfig(
    vocab_size=8192, hidden_size=1024, num_hidden_layers=10, intermediate_size=2560, first_k_dense_replace=1,
    num_attention_heads=8, num_key_value_heads=2, head_dim=128, rotary_dim=64, num_experts=64, num_experts_per_tok=4,
    moe_intermediate_size=256, n_group=8, topk_group=4, routed_scaling_factor=2.5, max_position_embeddings=4096,
    initializer_range=0.02, pad_token_id=None, eos_token_id=None,
)  # fmt: skip
"""513 million parameters."""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        random, directory = Path(scratch, "random"), Path(scratch, "model")
        export = ExportFormat(precision="bfloat16")
        write_random(random, CONFIG, export)
        to_safetensors(open_pieces(random), directory, export, tokenizer=bundled_directory())
        size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        runs = [seconds_to_first_token(directory) for _ in range(RUNS)]
    numbers: dict[str, Any] = {
        "checkpoint_gb": round(size / 1e9, 3),
        "seconds_to_first_token": [round(seconds, 2) for seconds in runs],
    }
    print(describe_machine())
    print(json.dumps(numbers, indent=2))
    print(save("start-time", numbers).name)
    sys.exit(0 if max(runs) <= TARGET_SECONDS else 1)


def seconds_to_first_token(directory: Path) -> float:
    """Return the seconds until the process writes: its only token, or the end of line behind one without text."""
    command = [sys.executable, "-m", "ling", "generate", "Once upon a time", "--raw", "--max-tokens", "1"]
    begin = time.perf_counter()
    with subprocess.Popen([*command, "--model", str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
    if process.returncode or not first:
        sys.exit(f"ling generate ended with {process.returncode}; its reason stands above")
    return seconds


if __name__ == "__main__":
    main()
