"""A trained vocabulary has the size asked for, all bytes, special tokens last, and never varies."""

import random

import pytest

from ling.errors import ConfigError, DataError
from ling.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe
from ling.tokenizer.byte_level import BYTE_OF_CHARACTER
from tests.tokenizer.conftest import TEXTS, VOCAB_SIZE

SMALLEST = len(BYTE_OF_CHARACTER) + len(SPECIAL_TOKENS)


def test_vocabulary_has_exactly_the_size_asked_for(backend):
    assert backend.get_vocab_size(with_added_tokens=True) == VOCAB_SIZE
    assert sorted(backend.get_vocab(with_added_tokens=True).values()) == list(range(VOCAB_SIZE))


def test_special_tokens_are_the_last_ids_in_lings_order(backend):
    ids = [backend.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(VOCAB_SIZE - len(SPECIAL_TOKENS), VOCAB_SIZE))


def test_bytes_are_the_first_ids(backend):
    assert {backend.id_to_token(id) for id in range(256)} == set(BYTE_OF_CHARACTER)


def test_nothing_is_inserted_even_when_the_library_may(backend):
    for text in ("", "Hello"):
        assert not set(backend.encode(text, add_special_tokens=True).tokens) & set(SPECIAL_TOKENS)


def test_training_is_deterministic(backend):
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert train_bpe(iter(shuffled), VOCAB_SIZE).to_str() == backend.to_str()


def test_the_smallest_vocabulary_has_no_merge_and_still_spells_everything():
    tokenizer = Tokenizer.from_backend(train_bpe([], SMALLEST))
    assert tokenizer.vocab_size == SMALLEST
    assert tokenizer.decode(tokenizer.encode("上海 🌸")) == "上海 🌸"
    assert len(tokenizer.encode("上海 🌸")) == len("上海 🌸".encode())


def test_special_tokens_spelt_in_the_texts_do_not_become_merges_of_their_own():
    tokenizer = train_bpe(["<|role_end|> and <role>"] * 9, SMALLEST + 4)
    assert tokenizer.encode("<|role_end|>").ids == [tokenizer.token_to_id("<|role_end|>")]


def test_a_size_below_bytes_and_specials_is_refused():
    with pytest.raises(ConfigError, match=f"at least {SMALLEST} .* got {SMALLEST - 1}"):
        train_bpe(TEXTS, SMALLEST - 1)


def test_too_little_text_says_how_far_it_reaches():
    with pytest.raises(DataError, match=r"yield (\d+) merges") as error:
        train_bpe(["low lower lowest low"], 1000)
    reached = int(str(error.value).rstrip(".").rsplit(" ", 1)[1])
    assert train_bpe(["low lower lowest low"], reached).get_vocab_size() == reached


def test_a_pair_seen_once_is_no_merge():
    with pytest.raises(DataError, match="yield 0 merges"):
        train_bpe(["abcdefg"], SMALLEST + 1)
    assert train_bpe(["abc", "abd"], SMALLEST + 1).encode("ab").tokens == ["ab"]


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(DataError, match=r"character 2 is U\+D83D"):
        train_bpe(["a \ud83d"], SMALLEST)
