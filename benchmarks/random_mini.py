"""A random model of Ling-mini's shape at any depth, in the form it is served in, with a tokenizer beside it.

    python -m benchmarks.random_mini out/mini-int4 --form int4,head=int8
    python -m benchmarks.random_mini out/mini8 --form int8 --layers 8
    python -m benchmarks.random_mini out/mini.gguf --form q4_0 --layers 8

Forms are those of `ling convert`: int8, int4 and mixed, prepared for CPUs; bfloat16, float8, float32; and GGUF's q8_0,
q4_0 and float16. Whatever the form, a tensor's values are the same, those of benchmarks/random_checkpoint.py, so files
of different forms hold the same model. A tensor or two are in memory; nothing of another form is written on the way.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.random_checkpoint import random_values, write_random
from ling.checkpoint.atomic import atomic_directory
from ling.checkpoint.gguf import GGUF_TYPES, to_gguf
from ling.checkpoint.names import Piece
from ling.checkpoint.packing import read_weights
from ling.checkpoint.pieces import files_of_tokenizer
from ling.checkpoint.prepare import write_packed
from ling.checkpoint.save import ExportFormat
from ling.cli.progress import progress_bar
from ling.config import ModelConfig
from ling.config.recipe import load_recipe
from ling.engine.bundled import bundled_directory

_VALUES = ("float32", "bfloat16", "float8")
_GGUF = tuple(sorted(set(GGUF_TYPES) - set(_VALUES)))


class RandomPieces:
    """A checkpoint that is drawn when it is read, as `PieceSource`."""

    kind = "random weights"
    shares: tuple[float, ...] = (1.0,)
    directories: tuple[Path, ...] = ()

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.directory = Path("random")

    def read(self, piece: Piece) -> Tensor:
        return random_values(piece, self.config)

    def release(self) -> None:
        pass

    def dtype(self, piece: Piece) -> torch.dtype:
        return torch.float32

    def reopen(self) -> "RandomPieces":
        return self

    def tokenizer_files(self) -> list[Path]:
        return files_of_tokenizer(bundled_directory())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--form", default="int4", help=f"int8, int4, int4,head=int8, ..., {', '.join(_VALUES + _GGUF)}")
    parser.add_argument("--layers", type=int, help="left out: all")
    parser.add_argument("--preset", default="ling_mini")
    parser.add_argument("--mtp", action="store_true", help="with an MTP layer")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    make(given.out, shape(given.preset, given.layers, mtp=given.mtp), given.form, workers=given.workers)


def shape(preset: str, layers: int | None, *, mtp: bool = False) -> ModelConfig:
    """Return a preset's model with so many layers, with an MTP layer or without."""
    config = load_recipe(preset_name=preset, file=None, overrides=[]).model.without_mtp()
    if mtp:  # the published checkpoint has none, so the preset has none either
        config = dataclasses.replace(config, num_nextn_predict_layers=1)
    if layers is None:
        return config
    first = min(config.first_k_dense_replace, layers)  # of a dense preset: all of them
    return dataclasses.replace(config, num_hidden_layers=layers, first_k_dense_replace=first)


def make(target: Path, config: ModelConfig, form: str, *, workers: int = 1) -> None:
    """Write the random model of `config` as a directory, or as a GGUF file."""
    if form in _GGUF:
        with progress_bar(f"random weights to {target.name}") as progress:
            to_gguf(RandomPieces(config), target, form, tokenizer=bundled_directory(), progress=progress)  # type: ignore[arg-type]
        return
    if form in _VALUES:
        write_random(target, config, ExportFormat(precision=form), workers=workers)  # type: ignore[arg-type]
        for file in files_of_tokenizer(bundled_directory()):
            shutil.copy(file, target)
        return
    with progress_bar(f"random weights to {target.name}") as progress, atomic_directory(target) as partial:
        write_packed(
            partial, config, read_weights(form), lambda piece: random_values(piece, config),
            workers=workers, progress=progress,
        )  # fmt: skip
        for file in files_of_tokenizer(bundled_directory()):
            shutil.copy(file, partial)


if __name__ == "__main__":
    main()
