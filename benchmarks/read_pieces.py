"""How fast memory is read in pieces that lie anywhere: why a task of the C kernels takes a long one.

    python -m benchmarks.run read_pieces

A C program of its own (benchmarks/read_pieces.c), built by the compiler that builds the kernels.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results import describe_machine, save

GIGABYTES, ROUNDS, TURNS = 3, 4, 3


def main() -> None:
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "read_pieces"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O3", "-march=native", "-fopenmp", source, "-o", program], check=True)
        turns = [measure(program, threads) for _ in range(TURNS)]
    numbers = {"threads": threads, "gigabytes": GIGABYTES, "gb_per_s_by_bytes_of_a_piece": turns}
    print(json.dumps(numbers, indent=2))
    print(describe_machine())
    print(save("read-pieces", numbers).name)


def measure(program: Path, threads: int) -> dict[str, float]:
    words = [str(program), str(threads), str(GIGABYTES), str(ROUNDS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"read_pieces ended with {done.returncode}: {done.stderr.strip()}")
    return {size: float(rate) for size, rate in (line.split() for line in done.stdout.splitlines())}


if __name__ == "__main__":
    main()
