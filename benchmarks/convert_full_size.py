"""Ling-mini at full size, BF16 to FP8 and back, in little memory and 60 GB of disk.

    python -m benchmarks.convert_full_size [SCRATCH] [--preset ling_mini] [--workers 2]

    1  a random BF16 checkpoint is written                            32.5 GB on disk
    2  its files are copied one by one, each copy removed: the pace of the disk
    3  `ling convert --force-fp8` in a process of its own             49.4 GB
    4  the BF16 tensors that must come back are computed with the reference quantiser and hashed,
       and each source file is removed when its last tensor is done   16.9 GB
    5  `ling convert` back to BF16                                    49.4 GB
    6  every tensor that came back is hashed and compared

Peak memory is the operating system's figure for each process. Read bytes per second of a conversion stand beside
those of copying.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import describe_machine, save
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.pieces import SafetensorsPieces
from ling.checkpoint.save import ExportFormat, encode
from ling.checkpoint.source import TensorSource
from ling.config.recipe import load_recipe
from ling.ops.fp8 import dequantize_e4m3_block

EXPORT = ExportFormat(precision="float8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, nargs="?")
    parser.add_argument("--preset", default="ling_mini")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    room = shutil.disk_usage(given.scratch or tempfile.gettempdir()).free / 1e9
    needed = 1.6 * ExportFormat().num_bytes(load_recipe(preset_name=given.preset, file=None, overrides=[]).model) / 1e9
    if room < needed:
        sys.exit(f"{room:.0f} GB of disk are free, {needed:.0f} are needed; give another SCRATCH directory")
    with tempfile.TemporaryDirectory(dir=given.scratch, prefix="full-size-") as scratch:
        numbers = measure(Path(scratch), given.preset, given.workers)
    print(describe_machine())
    print(save("convert-full-size", numbers).name)


def measure(scratch: Path, preset: str, workers: int) -> dict[str, Any]:
    first, fp8, back = (scratch / name for name in ("bf16", "fp8", "back"))
    threads = ("--workers", str(workers))
    numbers: dict[str, Any] = {"preset": preset, "workers": workers}

    def note(name: str, told: dict[str, Any]) -> None:
        numbers[name] = {**told, "disk_gb": gigabytes(scratch)}
        print(name, numbers[name], flush=True)

    note("random", run("benchmarks.random_checkpoint", first, "--preset", preset, *threads))
    size = gigabytes(first)
    note("copy", timed(lambda: copy_files(first, scratch / "copy"), size))
    note("to_fp8", run("ling", "convert", first, fp8, "--force-fp8", *threads, read_gb=size))
    expected = expected_hashes(SafetensorsPieces(first))
    shutil.rmtree(first)
    note("to_bf16", run("ling", "convert", fp8, back, *threads, read_gb=gigabytes(fp8)))
    numbers["ratio_to_copying"] = {
        name: round(numbers[name]["read_mb_per_second"] / numbers["copy"]["read_mb_per_second"], 3)
        for name in ("to_fp8", "to_bf16")
    }
    source = SafetensorsPieces(back)
    wrong = [
        piece.key for piece in published_pieces(source.config) if digest(source.read(piece)) != expected[piece.key]
    ]
    numbers |= {"tensors": len(expected), "different": len(wrong)}
    if wrong:
        sys.exit(f"{len(wrong)} tensors came back different, the first is {wrong[0]}")
    return numbers


def expected_hashes(source: SafetensorsPieces) -> dict[str, str]:
    """Return the hash of each tensor as it must come back, removing each file of `source` after its last tensor."""
    pieces = published_pieces(source.config)
    file_of = {key: stored.file for key, stored in TensorSource(source.directory).tensors.items()}
    last = {file_of[piece.key]: piece.key for piece in pieces}
    hashes = {}
    for piece in pieces:
        hashes[piece.key] = digest(there_and_back(piece, source.read(piece)))
        if last[file_of[piece.key]] == piece.key:
            file_of[piece.key].unlink()
    return hashes


def there_and_back(piece: Piece, values: Tensor) -> Tensor:
    stored = encode(piece, values, EXPORT)
    return dequantize_e4m3_block(*stored, torch.bfloat16) if len(stored) == 2 else stored[0]


def digest(values: Tensor) -> str:
    return hashlib.blake2b(values.contiguous().flatten().view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def run(module: str, *arguments: object, read_gb: float | None = None) -> dict[str, Any]:
    """Run a module in a process of its own; return its seconds, its peak memory and how fast it read."""
    process = subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], stderr=subprocess.DEVNULL)
    start = time.perf_counter()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{module} ended with {code}")
    told = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
    }
    return told if read_gb is None else {**told, "read_mb_per_second": round(1000 * read_gb / seconds)}


def timed(work: Callable[[], None], read_gb: float) -> dict[str, Any]:
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "read_mb_per_second": round(1000 * read_gb / seconds)}


def copy_files(source: Path, target: Path) -> None:
    """Copy every file and bring it to the disk, one at a time, as a conversion does; remove each copy."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as copied:
            os.fsync(copied.fileno())
        (target / file.name).unlink()
    target.rmdir()


def gigabytes(directory: Path) -> float:
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) / 1e9


if __name__ == "__main__":
    main()
