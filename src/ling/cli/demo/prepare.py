"""Before training: a tokenizer of our own, the books as tokens, and what is kept from training."""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

from ling.checkpoint.atomic import atomic_directory
from ling.config.model import ModelConfig
from ling.config.recipe import Recipe
from ling.data.books import BookTokens, split_books
from ling.data.dialogues import training_dialogue
from ling.data.mix import Mix
from ling.errors import ConfigError
from ling.tokenizer import Tokenizer, render, train_bpe
from ling.train.batch import TrainBatch, build_batch

_TOKENIZER_DIALOGUES = 4000
_TOKENIZER_BOOK_SHARE = 8
"""One document in so many is read for the vocabulary: more changes it little and takes longer."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training reads, and the real text it does not."""

    tokenizer: Tokenizer
    mix: Mix
    training_books: list[str]
    heldout_books: list[str]

    def read_batches(self, step: int, rank: int = 0, ranks: int = 1) -> list[TrainBatch]:
        """Return every `ranks`-th document of a step, counted from 0, as one microbatch."""
        documents = self.mix.documents(step)[rank::ranks]
        depth = self.mix.recipe.model.num_nextn_predict_layers
        return [build_batch([d.tokens for d in documents], [d.learnt for d in documents], depth)]

    def keep_tokenizer(self, directory: Path) -> None:
        """Write the tokenizer for later parts of the run, unless it was read from there."""
        if not directory.is_dir():
            with atomic_directory(directory) as partial:
                self.tokenizer.save(partial)


def prepare(recipe: Recipe, tokenizer_directory: Path | None) -> Prepared:
    """Train a tokenizer, or read the one that an earlier part of the run left, and tokenise the books.

    Writes nothing; raises ConfigError for a recipe that cannot be trained on them.
    """
    training, heldout = split_books(recipe.data.heldout_percent)
    if not heldout:
        raise ConfigError(
            f"data.heldout_percent {recipe.data.heldout_percent:g} holds out no document of the books; raise it"
        )
    if tokenizer_directory is not None and tokenizer_directory.is_dir():
        tokenizer = Tokenizer.from_directory(tokenizer_directory)
    else:
        tokenizer = _train_tokenizer(recipe, training)
    _check_special_ids(recipe.model, tokenizer)
    prepared = Prepared(tokenizer, Mix(recipe, BookTokens(training, tokenizer), tokenizer), training, heldout)
    prepared.read_batches(0)
    return prepared


def _check_special_ids(model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Refuse a model that pads or stops with ordinary tokens."""
    if model.pad_token_id != tokenizer.pad_id or not set(model.eos_token_ids) <= set(tokenizer.stop_ids):
        stops = ",".join(map(str, tokenizer.stop_ids))
        raise ConfigError(
            f"a vocabulary of {tokenizer.vocab_size} has its special tokens elsewhere; add "
            f"model.pad_token_id={tokenizer.pad_id} model.eos_token_id=[{stops}]"
        )


def _train_tokenizer(recipe: Recipe, books: list[str]) -> Tokenizer:
    draw = random.Random(f"tokenizer/{recipe.train.seed}")
    dialogues = (training_dialogue(draw, level=recipe.data.dialogue_level) for _ in range(_TOKENIZER_DIALOGUES))
    chats = (render(d.messages, tools=d.tools) for d in dialogues)
    texts = itertools.chain(chats, books[::_TOKENIZER_BOOK_SHARE])
    return Tokenizer.from_backend(train_bpe(texts, recipe.model.vocab_size))
