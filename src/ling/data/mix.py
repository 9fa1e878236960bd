"""Generated dialogues and pieces of real books, mixed by a function of (seed, step): resuming costs nothing."""

import random

from ling.config.recipe import Recipe
from ling.data.books import BookTokens
from ling.data.dialogues import Dialogue, training_dialogue
from ling.data.documents import Document, dialogue_document
from ling.errors import ConfigError
from ling.tokenizer import Tokenizer

_DRAWS = 1000
"""So many dialogues in a row that are too long mean that hardly one is short enough."""
_MOST_JOINED = 4


class Mix:
    """The documents of every step of a run."""

    def __init__(self, recipe: Recipe, books: BookTokens, tokenizer: Tokenizer) -> None:
        self.recipe = recipe
        self.books = books
        self.tokenizer = tokenizer

    def documents(self, step: int) -> list[Document]:
        """Return whole documents, shortest first, of at most `tokens_per_step` tokens in all.

        The share of the books is filled first and exactly; dialogues take what is left and do not quite fill it.
        """
        data, budget = self.recipe.data, self.recipe.train.tokens_per_step
        draw = random.Random(f"{self.recipe.train.seed}/{step}")
        documents: list[Document] = []
        from_books = round(budget * (1 - data.dialogue_fraction))
        while from_books > 0:
            documents.append(self.books.piece(draw, min(from_books, data.max_document_tokens)))
            from_books -= len(documents[-1].tokens)
        budget -= sum(len(d.tokens) for d in documents)
        while data.dialogue_fraction:
            document = self._dialogue(draw)
            if len(document.tokens) > budget:
                break
            documents.append(document)
            budget -= len(document.tokens)
        return sorted(documents, key=lambda d: len(d.tokens))

    def _dialogue(self, draw: random.Random) -> Document:
        """Return the next dialogue, or conversation of several, that is not too long."""
        data = self.recipe.data
        for _ in range(_DRAWS):
            document = dialogue_document(self._conversation(draw), self.tokenizer)
            if len(document.tokens) <= data.max_document_tokens:
                return document
        raise ConfigError(
            f"data.max_document_tokens {data.max_document_tokens} leaves out {_DRAWS} dialogues in a row; raise it"
        )

    def _conversation(self, draw: random.Random) -> list[Dialogue]:
        """Draw one dialogue, or a few that follow each other; those with tools stay alone."""
        level = self.recipe.data.dialogue_level
        first = training_dialogue(draw, level=level)
        if first.tools or draw.random() >= self.recipe.data.conversation_fraction:
            return [first]
        more = [training_dialogue(draw, level=level) for _ in range(draw.randint(1, _MOST_JOINED - 1))]
        return [first, *(dialogue for dialogue in more if not dialogue.tools)]
