"""Orthogonalising a stack of experts at once, against one expert after the other.

    python -m benchmarks.run newton_schulz

Both do the same operations on the same float32 matrices, in turns, on one thread of a CPU; ratios are of neighbouring
pairs. GFLOP/s count the matrix products alone: 5 iterations of 4 M^2 K + 2 M^3 (M the shorter side).
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.results import describe_machine, save
from ling.optim.newton_schulz import orthogonalize

ROUNDS = 7
SHAPES = [(64, 32, 64), (64, 128, 256), (32, 256, 512), (8, 512, 2048)]
"""Experts, rows, columns. The last are Ling-mini's, of which 256 MiB hold 14 at a time."""


def at_once(stack: Tensor) -> Tensor:
    return orthogonalize(stack)


def one_by_one(stack: Tensor) -> Tensor:
    return torch.stack([orthogonalize(matrix) for matrix in stack])


def gflops(experts: int, rows: int, columns: int) -> float:
    short, long = sorted((rows, columns))
    return 5 * experts * (4 * short**2 * long + 2 * short**3) / 1e9


def seconds(do: Callable[[Tensor], Tensor], stack: Tensor) -> float:
    start = time.perf_counter()
    do(stack)
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    numbers = {}
    for shape in SHAPES:
        stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        difference = (at_once(stack) - one_by_one(stack)).abs().max().item()
        assert difference < 1e-4, difference
        pairs = [(seconds(at_once, stack), seconds(one_by_one, stack)) for _ in range(ROUNDS)]
        ratios = [loop / batched for batched, loop in pairs]
        batched = statistics.median(pair[0] for pair in pairs)
        numbers["x".join(map(str, shape))] = {
            "batched_ms": round(1e3 * batched, 2),
            "loop_ms": round(1e3 * statistics.median(pair[1] for pair in pairs), 2),
            "batched_gflops_per_second": round(gflops(*shape) / batched, 1),
            "loop_over_batched_median": round(statistics.median(ratios), 3),
            "loop_over_batched_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    path = save("newton-schulz", numbers)
    print(f"{path.name}\n{describe_machine()}")
    for name, row in numbers.items():
        print(f"{name}: {row}")


if __name__ == "__main__":
    main()
