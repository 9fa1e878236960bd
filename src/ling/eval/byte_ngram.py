"""An interpolated byte n-gram model: the baseline a language model of real text has to beat.

Order n looks at the n bytes before. Each order is mixed with the next shorter one by Witten-Bell's rule,

    p_n(b | c) = (count(c b) + types(c) * p_{n-1}(b | c')) / (count(c) + types(c)),

down to uniform over 256 bytes, where types(c) is the number of different bytes seen behind context c
(Witten and Bell, IEEE Trans. Inf. Theory 37(4), 1991).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_U64 = NDArray[np.uint64]


class ByteNgram:
    """Counts of all byte strings of up to `order + 1` bytes, sorted, so that look-up is a binary search."""

    def __init__(self, order: int) -> None:
        assert 0 <= order <= 6, order
        self.order = order
        self._strings: list[_U64] = []
        self._counts: list[NDArray[np.int64]] = []

    def fit(self, documents: Sequence[bytes]) -> "ByteNgram":
        """Count the documents; strings do not run over a document's end. Returns itself."""
        arrays = [np.frombuffer(d, dtype=np.uint8) for d in documents]
        for n in range(1, self.order + 2):
            codes = np.concatenate([_codes(a, n) for a in arrays if len(a) >= n] or [np.zeros(0, np.uint64)])
            strings, counts = np.unique(codes, return_counts=True)
            self._strings.append(strings)
            self._counts.append(counts)
        return self

    def bits(self, document: bytes, order: int | None = None) -> NDArray[np.float64]:
        """Return the information of each byte given up to `order` bytes before it, (len,) in bits.

        order  at most the one that was fitted, which is the default: a longer fit holds all shorter ones
        """
        order = self.order if order is None else order
        assert order <= self.order, (order, self.order)
        data = np.frombuffer(document, dtype=np.uint8)
        p = np.full(len(data), 1 / 256)
        for n in range(order + 1):  # contexts of n bytes, for the bytes that have as many before them
            if len(data) <= n:
                break
            joint = self._count(n, _codes(data, n + 1))
            context = _codes(data, n)[: len(data) - n] if n else np.zeros(len(data), np.uint64)
            total, types = self._context(n, context)
            mixed = (joint + types * p[n:]) / np.maximum(total + types, 1)
            p[n:] = np.where(total > 0, mixed, p[n:])
        return -np.log2(p)

    def _count(self, n: int, codes: _U64) -> NDArray[np.int64]:
        """Look up how often strings of n + 1 bytes were seen."""
        strings, counts = self._strings[n], self._counts[n]
        at = np.minimum(np.searchsorted(strings, codes), max(len(strings) - 1, 0))
        return np.where(strings[at] == codes, counts[at], 0) if len(strings) else np.zeros(len(codes), np.int64)

    def _context(self, n: int, contexts: _U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how often each context of n bytes was followed by anything, and by how many different bytes."""
        strings, counts = self._strings[n], self._counts[n]
        low = np.searchsorted(strings, contexts << np.uint64(8))
        high = np.searchsorted(strings, (contexts << np.uint64(8)) | np.uint64(255), side="right")
        running = np.concatenate([[0], np.cumsum(counts)])
        return running[high] - running[low], high - low


def _codes(data: NDArray[np.uint8], n: int) -> _U64:
    """Pack each run of n bytes into an integer, first byte highest: (len - n + 1,)."""
    length = len(data) - n + 1
    codes = np.zeros(length, np.uint64)
    for i in range(n):
        codes = (codes << np.uint64(8)) | data[i : i + length].astype(np.uint64)
    return codes
