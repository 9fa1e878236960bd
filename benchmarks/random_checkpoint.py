"""A checkpoint of random weights at full size, written as a stream: Ling-mini's 32.5 GB take a few tensors of memory.

    python -m benchmarks.random_checkpoint out/random_mini [--preset ling_mini] [--workers 2]

Matrices are normal with the configuration's `initializer_range` and, as published ones, bfloat16, whatever they are
stored in; norms are 1, expert biases normal with 0.01. Every tensor has a generator of its own, seeded by its name, so
the same command gives the same bytes whatever the number of workers.
"""

import argparse
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.save import ExportFormat, encode, write_checkpoint
from ling.cli.progress import progress_bar
from ling.config import ModelConfig
from ling.config.recipe import load_recipe

EXPERT_BIAS_STD = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="ling_mini")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float8", "float32"))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    config = load_recipe(preset_name=given.preset, file=None, overrides=[]).model
    write_random(given.out, config, ExportFormat(precision=given.precision), workers=given.workers)


def write_random(directory: Path, config: ModelConfig, export: ExportFormat, *, workers: int = 1) -> None:
    """Write a random model of `config` into `directory`, with a progress bar."""
    total, done = len(published_pieces(config)), 0
    with progress_bar(f"random weights to {directory.name}") as told:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            told(done, total)

        write_checkpoint(
            directory, config, lambda piece: encode(piece, random_values(piece, config), export), export,
            advance=advance, workers=workers,
        )  # fmt: skip


def random_values(piece: Piece, config: ModelConfig) -> Tensor:
    """Return the values of one tensor in float32, those of matrices bfloat16's."""
    if piece.key.endswith("norm.weight"):
        return torch.ones(piece.shape)
    generator = torch.Generator().manual_seed(zlib.crc32(piece.key.encode()))
    std = EXPERT_BIAS_STD if piece.float32 else config.initializer_range
    values = torch.empty(piece.shape).normal_(0, std, generator=generator)
    return values if piece.float32 else values.bfloat16().float()


if __name__ == "__main__":
    main()
