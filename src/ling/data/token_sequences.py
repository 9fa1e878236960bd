"""Sequences of token files, weighted and shuffled: a pure function of (files, weights, seed, number).

A file is cut into windows of `sequence_length` tokens. Each pass over it takes every window once, in an order of its
own. Which file a sequence comes from follows from its number: file j has had its share of the first n sequences, within
one for each file before it, whatever n is. Nothing is drawn and nothing remembered, so a run resumes at any number of
sequences at once, and ranks and workers cannot change the order.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ling.data.shuffle import Shuffle
from ling.data.token_file import TokenFile
from ling.errors import ConfigError


class TokenSequences:
    """All sequences of a run; `len` is one pass over every window of every file.

    weights          shares of the sequences, one for each file; None: in proportion to their windows
    heldout_percent  share of each file's windows at its end that is kept from training, rounded up
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        weights: Sequence[float] | None,
        *,
        sequence_length: int,
        seed: int,
        heldout_percent: float = 0.0,
    ) -> None:
        self.files, self.sequence_length, self.seed = files, sequence_length, seed
        windows = [file.num_tokens // sequence_length for file in files]
        heldout = [-int(-count * heldout_percent // 100) for count in windows]
        self.windows = [count - kept for count, kept in zip(windows, heldout)]
        self.heldout = [(j, w) for j, count in enumerate(windows) for w in range(self.windows[j], count)]
        """(file, window) of what is kept from training."""
        for file, count in zip(files, self.windows):
            if count < 1:
                raise ConfigError(
                    f"{file.path} has {file.num_tokens} tokens, too few for a sequence of {sequence_length} beside "
                    "what is held out; lower train.sequence_length, or leave the file out"
                )
        shares = np.array(self.windows if weights is None else weights, np.float64)
        left = shares[::-1].cumsum()[::-1]
        self._share_of_rest = [float(own / rest) for own, rest in zip(shares, left)]

    def __len__(self) -> int:
        return sum(self.windows)

    def tokens(self, number: int) -> list[NDArray[np.integer]]:
        """Return sequence `number`, counted from 0 and without end: its tokens, cut where documents begin."""
        file, nth = self.source(number)
        epoch, place = divmod(nth, self.windows[file])
        return self.window(file, self._order(file, epoch)[place])

    def source(self, number: int) -> tuple[int, int]:
        """Return the file that a sequence comes from, and how many came from there before."""
        for file, share in enumerate(self._share_of_rest):
            before, after = int(number * share + 0.5), int((number + 1) * share + 0.5)
            if after > before:
                return file, before
            number -= before
        raise AssertionError((number, self._share_of_rest))  # the last one's share of the rest is 1

    def window(self, file: int, window: int) -> list[NDArray[np.integer]]:
        """Return a window's tokens, cut where documents begin."""
        start = window * self.sequence_length
        return list(self.files[file].pieces(start, start + self.sequence_length))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identify everything the order depends on, and the files by their sizes and samples of their tokens."""
        told = hashlib.blake2b(digest_size=16)
        told.update(f"{self.sequence_length}/{self.seed}/{self._share_of_rest}/{self.windows}".encode())
        for file in self.files:
            told.update(f"{file.num_documents}/{file.num_tokens}/{file.dtype}".encode())
            places = sorted({file.num_tokens * i // 64 for i in range(64)})
            told.update(b"".join(file.tokens[p : p + 16].tobytes() for p in places))
        return told.hexdigest()

    @functools.lru_cache(maxsize=64)  # noqa: B019 (lives as long as a run)
    def _order(self, file: int, epoch: int) -> Shuffle:
        return Shuffle(self.windows[file], f"{self.seed}/{file}/{epoch}")
