"""What a run reads: the books and dialogues in the package, for now."""

from pathlib import Path
from typing import TYPE_CHECKING

from ling.checkpoint.pieces import TOKENIZER_DIRECTORY
from ling.cli.demo.prepare import Prepared, prepare
from ling.config.recipe import Recipe
from ling.train.batch import TrainBatch

if TYPE_CHECKING:
    from ling.checkpoint.pieces import PieceSource


class BuiltIn:
    """Books and generated dialogues (section `data`)."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.tokenizer = prepared.tokenizer
        self.heldout = prepared.heldout_books

    def read_batches(self, step: int) -> list[TrainBatch]:
        return self.prepared.read_batches(step)

    def keep_tokenizer(self, directory: Path) -> None:
        self.prepared.keep_tokenizer(directory)

    def add_tokenizer(self, directory: Path) -> None:
        self.tokenizer.save(directory / TOKENIZER_DIRECTORY)


def open_data(recipe: Recipe, kept: Path | None, source: "PieceSource | None") -> BuiltIn:
    """Open the data of a recipe.

    kept    tokenizer that an earlier part of the run left
    source  checkpoint that the run begins with; its tokenizer is used, without one a new one is trained
    """
    files = [] if source is None else [f for f in source.tokenizer_files() if f.name == "tokenizer.json"]
    return BuiltIn(prepare(recipe, kept or (files[0].parent if files else None)))
