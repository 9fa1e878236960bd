"""Blocks: taken, shared, released and found again; none lost whatever the order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ling.engine.blocks import BlockPool, extend_digests


def digests(tokens: list[int], salt: str = "") -> list[bytes]:
    chain: list[bytes] = []
    extend_digests(chain, tokens, 4, salt)
    return chain


def publish(pool: BlockPool, blocks: list[int], chain: list[bytes]) -> None:
    for block, digest in zip(blocks, chain):
        pool.publish(block, digest, with_drafting=False)


def test_published_blocks_are_found_by_their_whole_beginning() -> None:
    pool = BlockPool(8, 4)
    tokens = list(range(12))
    blocks = [pool.take() for _ in range(3)]
    publish(pool, blocks, digests(tokens))
    assert pool.match(digests(tokens)) == blocks
    assert pool.match(digests([*tokens[:8], 99, 99, 99, 99])) == blocks[:2]
    assert pool.match(digests([99, *tokens[1:]])) == []
    assert pool.match(digests(tokens, salt="another")) == []


def test_released_blocks_are_still_found_until_they_are_taken_the_longest_unused_first() -> None:
    pool = BlockPool(4, 4)
    first, second = digests([1] * 8), digests([2] * 8)
    for chain in (first, second):
        blocks = [pool.take(), pool.take()]
        publish(pool, blocks, chain)
        pool.release(blocks)
    assert pool.num_free == 4
    held = pool.match(second)  # in use again, so its blocks are not for the taking
    assert len(held) == 2
    pool.take()
    assert len(pool.match(first)) == 1  # its end went first: the beginning serves more prompts
    assert pool.num_free == 0


def test_without_caching_nothing_is_found() -> None:
    pool = BlockPool(4, 4, caching=False)
    publish(pool, [pool.take()], digests([1] * 4))
    assert pool.match(digests([1] * 4)) == []


def test_the_first_of_two_equal_blocks_is_the_one_found() -> None:
    pool = BlockPool(4, 4)
    chain = digests([1] * 4)
    one, two = pool.take(), pool.take()
    publish(pool, [one], chain)
    publish(pool, [two], chain)
    assert pool.match(chain) == [one]
    pool.release([one])
    pool.release([one])
    pool.release([two])
    pool.check([])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 24), st.integers(0, 2)), max_size=30), st.randoms())
def test_blocks_are_conserved_whatever_the_order_of_requests(requests: list, random: object) -> None:
    pool = BlockPool(12, 4)
    held: list[list[int]] = []
    for kind, length, salt in requests:
        if held and random.random() < 0.4:  # type: ignore[attr-defined]
            pool.release(held.pop(random.randrange(len(held))))  # type: ignore[attr-defined]
        chain = digests([kind] * length, str(salt))
        blocks = pool.match(chain)
        missing = pool.needed(length) - len(blocks)
        if missing > pool.num_free:
            pool.release(blocks)
        else:
            blocks += [pool.take() for _ in range(missing)]
            publish(pool, blocks, chain)
            held.append(blocks)
        pool.check(held)
    for blocks in held:
        pool.release(blocks)
    pool.check([])
