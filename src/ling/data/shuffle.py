"""A random order that is computed and not stored: which item comes where, for any place at once.

A Feistel network of four rounds permutes the numbers below a power of four; a number that falls outside the range is
sent through again until it falls inside (M. Luby and C. Rackoff, 1988; J. Black and P. Rogaway, 2002). On average that
is less than four passes. Resuming costs nothing and a billion items take no memory.
"""

import hashlib

_ROUNDS = 4


class Shuffle:
    """A permutation of the numbers below `count`, another one for each `key`."""

    def __init__(self, count: int, key: str) -> None:
        assert count > 0, count
        self.count = count
        self._half = max(1, ((count - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]

    def __getitem__(self, place: int) -> int:
        """Return which item stands at `place`."""
        assert 0 <= place < self.count, (place, self.count)
        while True:
            place = self._through(place)
            if place < self.count:
                return place

    def _through(self, number: int) -> int:
        mask = (1 << self._half) - 1
        left, right = number >> self._half, number & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << self._half | right


def _mix(x: int) -> int:
    """Scatter 64 bits (the finaliser of splitmix64)."""
    x &= 2**64 - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return x ^ (x >> 31)
