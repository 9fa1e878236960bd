"""Who runs in the next step, and with how many tokens.

One rule: every sequence gets the tokens that bring it up to date, within a budget per step. A prompt that exceeds it
is computed in chunks, a decoding sequence asks for its last token, a verification for that and its drafts. Decoding
goes first, so nobody's answer waits for somebody's prompt; then prompts that were begun; then waiting ones in order
of arrival, while blocks for the whole of what they need are free. If a running sequence finds no block, the youngest
one gives its blocks back, waits in front of all others, and is computed again.
"""

from collections import deque
from dataclasses import dataclass, field

from ling.engine.blocks import BlockPool, extend_digests
from ling.engine.sequence import Sequence


@dataclass(slots=True)
class Scheduler:
    """Sequences that wait and run.

    pool       blocks of the cache
    budget     most tokens of a step; at least one for each running sequence and its drafts
    most       most running sequences
    lookahead  slots behind its tokens that a sequence needs for drafting
    """

    pool: BlockPool
    budget: int
    most: int
    lookahead: int = 0
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    """The oldest first."""
    num_preempted: int = 0
    num_queried: int = 0
    """Prompt tokens looked up in the prefix cache, and those found there."""
    num_found: int = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and take its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.forget_cache()

    def schedule(self) -> dict[Sequence, int]:
        """Return the rows of the next step: how many tokens of each sequence, from `num_computed` on."""
        rows: dict[Sequence, int] = {}
        budget = self.budget
        preempted = self.num_preempted
        for sequence in sorted(self.running, key=lambda s: s.is_prefilling):
            if sequence.blocks == [] and sequence not in self.running:
                continue  # gave its blocks to one before it
            count, before = min(sequence.num_new, budget), self.num_preempted
            if not count or not self._make_room(sequence, count, rows):
                continue
            rows[sequence] = count
            budget = budget - count if self.num_preempted == before else self.budget - sum(rows.values())
        if self.num_preempted == preempted:
            self._admit(rows, budget)
        for sequence, count in rows.items():
            known = len(sequence.tokens) - sequence.num_computed
            del sequence.drafts[max(0, count - known) :]
        return rows

    def _make_room(self, sequence: Sequence, count: int, rows: dict[Sequence, int]) -> bool:
        """Give it blocks for `count` more tokens, from the youngest if need be; False: it was the youngest."""
        needed = self.pool.needed(sequence.num_computed + count + self.lookahead)
        while len(sequence.blocks) < needed:
            if self.pool.num_free:
                sequence.blocks.append(self.pool.take())
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            rows.pop(youngest, None)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self.waiting.appendleft(sequence)
        self.num_preempted += 1

    def _admit(self, rows: dict[Sequence, int], budget: int) -> None:
        passed: list[Sequence] = []
        try:
            while self.waiting and budget and len(self.running) < self.most:
                passed.append(sequence := self.waiting.popleft())
                if self._waits_for_another(sequence):
                    continue
                if not self._give_blocks(sequence):
                    break
                self.running.append(passed.pop())
                rows[sequence] = count = min(sequence.num_new, budget)
                budget -= count
        finally:  # whatever went wrong: who is not running waits, and is still known
            self.waiting.extendleft(reversed(passed))

    def _waits_for_another(self, sequence: Sequence) -> bool:
        """Whether its prompt is being computed by an answer to the same prompt."""
        first = sequence.after
        if first is None or first.finished or not self.pool.caching:
            return False
        return first.num_computed < first.num_prompt

    def _give_blocks(self, sequence: Sequence) -> bool:
        """Hold what the prefix cache has of it and take blocks for the rest; False: there are not enough."""
        assert not sequence.blocks, len(sequence.blocks)
        size, tokens = self.pool.block_size, sequence.tokens
        found: list[int] = []
        if self.pool.caching and not sequence.wants_prompt_logprobs:
            extend_digests(sequence.digests, tokens, size, sequence.salt)
            found = self.pool.match(sequence.digests[: (len(tokens) - 1) // size])  # the last token is always computed
        missing = self.pool.needed(len(tokens) + self.lookahead) - len(found)
        if missing > self.pool.num_free:
            self.pool.release(found)
            return False
        sequence.blocks = found + [self.pool.take() for _ in range(missing)]
        sequence.num_computed = len(found) * size
        sequence.num_published = len(found)
        if sequence.num_generated == 0:
            sequence.num_cached_prompt = sequence.num_computed
            self.num_queried += len(tokens)
            self.num_found += sequence.num_computed
        return True

    def publish(self, sequence: Sequence) -> None:
        """Offer its blocks that became full."""
        size = self.pool.block_size
        full = sequence.num_computed // size
        if not self.pool.caching or full <= sequence.num_published:
            return
        extend_digests(sequence.digests, sequence.tokens, size, sequence.salt)
        kept = sequence.mtp_next - 1 + sequence.num_pending  # tokens whose hidden states drafting has got
        for index in range(sequence.num_published, full):
            end = (index + 1) * size
            drafting = sequence.mtp_first == 1 and sequence.mtp_next >= end and kept >= end
            self.pool.publish(sequence.blocks[index], sequence.digests[index], with_drafting=drafting)
        sequence.num_published = full
