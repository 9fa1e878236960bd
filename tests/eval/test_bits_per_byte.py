"""Bits per byte: exact on models whose answer is known, and the byte n-gram baseline itself."""

from collections import Counter
from math import log, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling.eval.bits_per_byte import bits_per_byte, ngram_bits_per_byte
from ling.eval.byte_ngram import ByteNgram
from ling.tokenizer import Tokenizer, train_bpe

TEXTS = [
    "the cat sat on the mat, and the cat was fat.",
    "a cat ate the rat that sat on the mat.",
    "猫坐在垫子上。",
]
TOKENIZER = Tokenizer.from_backend(train_bpe(TEXTS * 5, 280))


def uniform(sequences) -> list[list[float]]:
    return [[log(2)] * (len(s) - 1) for s in sequences]


@pytest.mark.parametrize(("window", "stride"), [(4, 1), (5, 4), (8, 3), (1000, 500)])
def test_every_token_but_the_first_is_counted_once(window: int, stride: int) -> None:
    measured = bits_per_byte(uniform, TOKENIZER, TEXTS, window=window, stride=stride)
    encoded = [TOKENIZER.encode(t, special=False) for t in TEXTS]
    assert measured.bits == pytest.approx(sum(len(e) - 1 for e in encoded))
    skipped = sum(len(TOKENIZER.token_bytes(e[0])) for e in encoded)
    assert measured.num_bytes == sum(len(t.encode()) for t in TEXTS) - skipped


def test_later_tokens_see_enough_before_them() -> None:
    seen: list[int] = []

    def record(sequences) -> list[list[float]]:
        seen.extend(len(s) for s in sequences)
        return uniform(sequences)

    bits_per_byte(record, TOKENIZER, TEXTS[:1], window=6, stride=2)
    assert all(n > 4 for n in seen)


def test_both_measures_count_the_same_bytes() -> None:
    ours = bits_per_byte(uniform, TOKENIZER, TEXTS, window=8, stride=4)
    baseline = ngram_bits_per_byte(ByteNgram(2).fit([b"x"]), TOKENIZER, TEXTS)
    assert ours.num_bytes == baseline.num_bytes


def slow_probability(training: list[bytes], order: int, before: bytes, byte: int) -> float:
    """Witten-Bell by the book, with dictionaries."""
    p = 1 / 256
    for n in range(order + 1):
        if n > len(before):
            break
        context = before[len(before) - n :]
        followers = Counter(d[i + n] for d in training for i in range(len(d) - n) if d[i : i + n] == context)
        total, types = sum(followers.values()), len(followers)
        if total:
            p = (followers[byte] + types * p) / (total + types)
    return p


@given(
    st.lists(st.binary(min_size=1, max_size=12).map(lambda b: bytes(c % 4 for c in b)), min_size=1, max_size=4),
    st.binary(min_size=1, max_size=8).map(lambda b: bytes(c % 5 for c in b)),
    st.integers(0, 3),
)
def test_the_baseline_is_witten_bell(training: list[bytes], document: bytes, order: int) -> None:
    got = ByteNgram(order + 1).fit(training).bits(document, order)
    np.testing.assert_array_equal(got, ByteNgram(order).fit(training).bits(document))
    before = [document[max(0, i - order) : i] for i in range(len(document))]
    expected = [-log2(slow_probability(training, order, b, c)) for b, c in zip(before, document, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_longer_contexts_help_on_text() -> None:
    text = [t.encode() for t in TEXTS] * 3
    values = [ByteNgram(order).fit(text).bits(text[0]).mean() for order in range(4)]
    assert values == sorted(values, reverse=True)
