"""Before training: a tokenizer of our own, the books as tokens, and what is kept from training."""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

from ling.checkpoint.atomic import atomic_directory
from ling.config.recipe import Recipe
from ling.data.books import BookTokens, split_books
from ling.data.dialogues import training_dialogue
from ling.data.mix import Mix
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

    def read_batch(self, step: int) -> TrainBatch:
        documents = self.mix.documents(step)
        depth = self.mix.recipe.model.num_nextn_predict_layers
        return build_batch([d.tokens for d in documents], [d.learnt for d in documents], depth)


def prepare(recipe: Recipe, tokenizer_directory: Path) -> Prepared:
    """Train the tokenizer, or read it if an earlier part of the run has, and tokenise the books."""
    training, heldout = split_books(recipe.data.heldout_percent)
    if tokenizer_directory.is_dir():
        tokenizer = Tokenizer.from_directory(tokenizer_directory)
    else:
        tokenizer = _train_tokenizer(recipe, training)
        with atomic_directory(tokenizer_directory) as partial:
            tokenizer.save(partial)
    return Prepared(tokenizer, Mix(recipe, BookTokens(training, tokenizer), tokenizer), training, heldout)


def _train_tokenizer(recipe: Recipe, books: list[str]) -> Tokenizer:
    draw = random.Random(f"tokenizer/{recipe.train.seed}")
    dialogues = (training_dialogue(draw, level=recipe.data.dialogue_level) for _ in range(_TOKENIZER_DIALOGUES))
    chats = (render(d.messages, tools=d.tools) for d in dialogues)
    texts = itertools.chain(chats, books[::_TOKENIZER_BOOK_SHARE])
    return Tokenizer.from_backend(train_bpe(texts, recipe.model.vocab_size))
