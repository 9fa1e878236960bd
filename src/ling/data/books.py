"""The built-in books as one row of tokens, from which pieces are cut."""

import random

import numpy as np
from numpy.typing import NDArray

from ling.data.builtin import read_documents
from ling.data.dialogues.split import heldout
from ling.data.documents import Document
from ling.errors import DataError
from ling.tokenizer import Tokenizer


def split_books(heldout_percent: float) -> tuple[list[str], list[str]]:
    """Return the documents of all books to train on, and those held out."""
    training: list[str] = []
    kept: list[str] = []
    for _, text in read_documents():
        (kept if heldout(text, heldout_percent) else training).append(text)
    return training, kept


class BookTokens:
    """Tokenised documents, end to end.

    tokens  (N,) int32
    ends    (D,) int64, where each document ends
    """

    def __init__(self, documents: list[str], tokenizer: Tokenizer) -> None:
        encoded = [np.array(tokenizer.encode(text, special=False), dtype=np.int32) for text in documents]
        if not encoded:
            raise DataError("there are no documents to cut pieces from")
        self.tokens: NDArray[np.int32] = np.concatenate(encoded)
        self.ends: NDArray[np.int64] = np.cumsum([len(e) for e in encoded])

    def piece(self, draw: random.Random, max_tokens: int) -> Document:
        """Cut a piece of at most `max_tokens` that starts anywhere and stays inside its document."""
        start = draw.randrange(len(self.tokens))
        end = min(start + max_tokens, int(self.ends[np.searchsorted(self.ends, start, side="right")]))
        tokens = self.tokens[start:end].tolist()
        return Document(tokens, [True] * len(tokens))
