"""Time and peak memory of writing GGUF files from a random checkpoint of about a billion parameters.

    python -m benchmarks.run write_gguf

Each file is written by a process of its own, from a source in the page cache; the time is until the disk has it.
"""

import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.load_checkpoint import CONFIG, peak_mib
from benchmarks.results import describe_machine, save
from ling.checkpoint import save_model
from ling.checkpoint.gguf import GGUF_TYPES, to_gguf
from ling.checkpoint.names import published_pieces
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.engine.bundled import bundled_directory
from ling.model import CausalLM, init_weights
from ling.scaling.parameters import count_parameters

REPEATS = 3


def main() -> None:
    if len(sys.argv) > 1:
        return print(json.dumps(write_once(*sys.argv[1:])))
    largest = max(4 * piece.shape[0] * piece.shape[-1] for piece in published_pieces(CONFIG))
    numbers: dict[str, Any] = {"parameters": count_parameters(CONFIG).total, "largest_float32_mib": largest / 2**20}
    with tempfile.TemporaryDirectory() as scratch:
        model = init_weights(CausalLM(CONFIG).bfloat16(), torch.Generator().manual_seed(0))
        for precision in ("bfloat16", "float8"):
            save_model(model, Path(scratch, precision), export=ExportFormat(precision=precision))
        del model
        for precision in ("bfloat16", "float8"):
            for dtype in GGUF_TYPES:
                runs = [in_process(str(Path(scratch, precision)), dtype) for _ in range(REPEATS)]
                best = numbers[f"{precision}_to_{dtype}"] = min(runs, key=lambda r: r["seconds"])
                print(f"{precision} checkpoint, {dtype} file: {best}", flush=True)
    numbers["gguf"] = version("gguf")
    print(describe_machine())
    print(save("write-gguf", numbers).name)


def in_process(directory: str, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.write_gguf", directory, dtype]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def write_once(directory: str, dtype: str) -> dict[str, float]:
    target = Path(directory).with_suffix(".gguf")
    source, before = open_pieces(Path(directory)), peak_mib()
    start = time.perf_counter()
    to_gguf(source, target, dtype, tokenizer=bundled_directory(), overwrite=True)  # type: ignore[arg-type]
    seconds, size = time.perf_counter() - start, target.stat().st_size
    target.unlink()
    return {
        "seconds": round(seconds, 2),
        "file_mb": round(size / 1e6, 1),
        "million_weights_per_second": round(count_parameters(CONFIG).total / seconds / 1e6),
        "peak_mib_above_start": round(peak_mib() - before, 1),
    }


if __name__ == "__main__":
    main()
