"""Blocks of the cache: who holds them, and which prompts they can be given to again.

A block is free, or held by one or more requests. A full block may be published under a digest of all tokens up to
its end (a sha256 chain that begins with the request's salt), so whoever has the same digest may hold it too. Free
blocks keep what they were published as until they are taken, the longest unused first. Everything is O(1) per block.

    held  --last holder releases-->  free, still published  --taken by somebody else-->  held, unpublished
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens.

    caching  False: nothing is published, so nothing is ever matched
    """

    def __init__(self, num_blocks: int, block_size: int, *, caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self._holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        """The next to be taken first."""
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._with_drafting: set[int] = set()
        """Published blocks whose MTP slots are filled as well."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    def needed(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def take(self) -> int:
        """Take the free block that was unused the longest."""
        block, _ = self._free.popitem(last=False)
        if (digest := self._digest_of.pop(block, None)) is not None:
            del self._block_of[digest]
            self._with_drafting.discard(block)
        self._holders[block] = 1
        return block

    def release(self, blocks: Iterable[int]) -> None:
        """Let go of `blocks`, first to last of a sequence: its end is taken again before its beginning."""
        for block in reversed(list(blocks)):
            assert self._holders[block] > 0, block
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if block not in self._digest_of:  # nobody will ask for it: the first to be taken
                    self._free.move_to_end(block, last=False)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """Hold and return the published blocks of the longest known beginning of `digests`."""
        found = []
        for digest in digests:
            if (block := self._block_of.get(digest)) is None:
                break
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1
            found.append(block)
        return found

    def publish(self, block: int, digest: bytes, *, with_drafting: bool) -> None:
        """Offer a full, held block to others; the first of several with the same content is kept."""
        if self.caching and digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest], self._digest_of[block] = block, digest
            if with_drafting:
                self._with_drafting.add(block)

    def drafting_is_filled(self, blocks: Iterable[int]) -> bool:
        return all(block in self._with_drafting for block in blocks)

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Assert that `held`, the blocks of every request, and the free ones are all there are."""
        counts = [0] * self.num_blocks
        for blocks in held:
            for block in blocks:
                counts[block] += 1
        assert counts == self._holders, [(b, c, h) for b, (c, h) in enumerate(zip(counts, self._holders)) if c != h]
        assert set(self._free) == {b for b, c in enumerate(counts) if not c}, (len(self._free), counts.count(0))
        assert self._block_of == {d: b for b, d in self._digest_of.items()}


def extend_digests(digests: list[bytes], tokens: Sequence[int], block_size: int, salt: str) -> None:
    """Append the digest of every full block of `tokens` that `digests` lacks."""
    for index in range(len(digests), len(tokens) // block_size):
        before = digests[-1] if digests else hashlib.sha256(salt.encode(errors="surrogatepass")).digest()
        content = array("q", tokens[index * block_size : (index + 1) * block_size]).tobytes()
        digests.append(hashlib.sha256(before + content).digest())
