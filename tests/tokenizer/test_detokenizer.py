"""Streamed text is the decoded text, and never half a character."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ling.tokenizer import IncrementalDetokenizer, Tokenizer, train_bpe
from tests.tokenizer.conftest import VOCAB_SIZE

BYTEWISE = Tokenizer.from_backend(train_bpe([], 263))
"""Every byte is a token."""

some_ids = st.lists(st.integers(0, VOCAB_SIZE + 10) | st.integers(100, 255), max_size=30)


def stream(tokenizer, ids, **options):
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    return [*(detokenizer.push(id) for id in ids), detokenizer.finish()]


@settings(deadline=None, max_examples=500)
@given(ids=some_ids, skip_special=st.booleans())
def test_pushes_join_to_the_decoded_text(tokenizer, ids, skip_special):
    pieces = stream(tokenizer, ids, skip_special=skip_special)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip_special)


@settings(deadline=None)
@given(text=st.text())
def test_text_comes_out_character_by_character(tokenizer, text):
    pieces = stream(BYTEWISE, BYTEWISE.encode(text, special=False))
    assert [piece for piece in pieces if piece] == list(text)
    assert "".join(stream(tokenizer, tokenizer.encode(text))) == text


def test_bytes_wait_until_their_character_is_whole():
    assert stream(BYTEWISE, BYTEWISE.encode("上a")) == ["", "", "上", "a", ""]


def test_bytes_that_cannot_become_a_character_do_not_wait():
    first, *_ = BYTEWISE.encode("上")
    letter = BYTEWISE.encode("a")[0]
    assert stream(BYTEWISE, [first, letter, first]) == ["", "\ufffda", "", "\ufffd"]


def test_a_special_token_is_text_or_nothing(tokenizer):
    ids = tokenizer.encode("a<|role_end|>")
    assert stream(tokenizer, ids) == ["a", "<|role_end|>", ""]
    assert stream(tokenizer, ids, skip_special=True) == ["a", "", ""]


def test_a_detokenizer_can_be_used_again_after_finish():
    detokenizer = IncrementalDetokenizer(BYTEWISE)
    detokenizer.push(BYTEWISE.encode("上")[0])
    assert detokenizer.finish() == "\ufffd"
    assert [detokenizer.push(id) for id in BYTEWISE.encode("a")] == ["a"]
