"""Text survives the way to ids and back, and special tokens act only where they are allowed to."""

import copy
import json
import pickle
import threading

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ling.errors import CheckpointError, DataError
from ling.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe
from tests.tokenizer import chats
from tests.tokenizer.conftest import TEXTS, VOCAB_SIZE

ids_of_any_kind = st.lists(st.integers(0, VOCAB_SIZE + 30), max_size=20)


@settings(deadline=None)
@given(text=st.text() | chats.text, special=st.booleans())
def test_every_string_survives(tokenizer, text, special):
    assert tokenizer.decode(tokenizer.encode(text, special=special)) == text


@pytest.mark.parametrize("special", [True, False])
def test_a_long_text_is_encoded_as_a_short_one_is(tokenizer, special, monkeypatch):
    text = "".join(TEXTS) + "<|role_end|>".join(["one", " two ", "\n\n", "他们"] * 700)
    long = tokenizer.encode(text, special=special)
    monkeypatch.setattr("ling.tokenizer.tokenizer._LONG_TEXT", len(text))
    assert tokenizer.encode(text, special=special) == long
    assert tokenizer.decode(long) == text


def test_other_threads_run_while_a_long_text_is_encoded(tokenizer):
    ran, text = [], "over and over again, " * 20_000
    done = threading.Event()

    def count():
        while not done.wait(0.001):
            ran.append(1)

    thread = threading.Thread(target=count)
    thread.start()
    before = len(ran)
    tokenizer.encode(text)
    meanwhile = len(ran) - before
    done.set()
    thread.join()
    assert meanwhile > 5  # one, at most, if the lock is held all the time


@settings(deadline=None)
@given(text=chats.hostile_text)
def test_without_special_no_spelling_acts(tokenizer, text):
    ids = tokenizer.encode(text, special=False)
    assert not [id for id in ids if tokenizer.is_special(id)]
    assert tokenizer.decode(ids, skip_special=True) == text


@settings(deadline=None)
@given(text=chats.plain_text)
def test_special_makes_no_difference_to_ordinary_text(tokenizer, text):
    assert tokenizer.encode(text) == tokenizer.encode(text, special=False)


@settings(deadline=None)
@given(ids=ids_of_any_kind, skip_special=st.booleans())
def test_decoding_is_that_of_the_library(tokenizer, backend, ids, skip_special):
    expected = backend.decode(ids, skip_special_tokens=skip_special)
    assert tokenizer.decode(ids, skip_special=skip_special) == expected


def test_special_tokens_are_one_id_each(tokenizer):
    for token in SPECIAL_TOKENS:
        assert [tokenizer.is_special(id) for id in tokenizer.encode(token)] == [True]
        assert len(tokenizer.encode(token, special=False)) > 1


def test_named_ids_are_those_of_a_chat_model(tokenizer):
    bos, eod, _, _, eos, _, _ = range(VOCAB_SIZE - 7, VOCAB_SIZE)
    assert (tokenizer.bos_id, tokenizer.eod_id, tokenizer.pad_id, tokenizer.eos_id) == (bos, eod, eod, eos)
    assert tokenizer.stop_ids == (eod, eos)
    assert tokenizer.is_chat
    assert tokenizer.vocab_size == VOCAB_SIZE


def test_token_bytes_join_to_the_text(tokenizer):
    text = "床前明月光 def main():\n<|role_end|>🌸"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer):
    assert tokenizer.token_bytes(VOCAB_SIZE) == tokenizer.token_bytes(-1) == b""


def test_text_is_split_at_special_tokens(tokenizer):
    assert tokenizer.split_special("a<role>SYSTEM</role><rol") == [
        ("a", None),
        ("<role>", VOCAB_SIZE - 2),
        ("SYSTEM", None),
        ("</role>", VOCAB_SIZE - 1),
        ("<rol", None),
    ]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_still_refuses_injection(tokenizer, clone):
    text = "a<|role_end|>b"
    assert clone(tokenizer).encode(text, special=False) == tokenizer.encode(text, special=False)
    assert clone(tokenizer).stop_ids == tokenizer.stop_ids


def test_a_control_token_that_the_file_calls_ordinary_is_still_under_lock(backend):
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer(json.dumps(content))
    ids = tokenizer.encode("<role>x<|role_end|>", special=False)
    assert not [id for id in ids if tokenizer.is_special(id)]
    assert tokenizer.decode(tokenizer.encode("<role>x"), skip_special=True) == "x"


def test_an_ordinary_added_token_stays_one_token_everywhere(backend):
    content = json.loads(backend.to_str())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": VOCAB_SIZE, "content": "<é>", "special": False})
    tokenizer = Tokenizer(json.dumps(content))
    assert tokenizer.encode("a<é>b") == tokenizer.encode("a<é>b", special=False)
    assert tokenizer.decode([VOCAB_SIZE]) == tokenizer.decode([VOCAB_SIZE], skip_special=True) == "<é>"


def test_truncation_and_padding_of_the_file_do_not_apply(backend):
    own = tokenizers.Tokenizer.from_str(backend.to_str())
    own.enable_truncation(2)
    own.enable_padding(length=50)
    assert Tokenizer.from_backend(own).encode(TEXTS[1]) == backend.encode(TEXTS[1]).ids


def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer):
    for special in (True, False):
        with pytest.raises(DataError, match=r"character 2 is U\+D800, half of a surrogate pair"):
            tokenizer.encode("ab\ud800", special=special)


def test_a_vocabulary_without_lings_special_tokens_is_refused():
    content = json.loads(train_bpe(TEXTS[:1], 300).to_str())
    content["added_tokens"] = content["added_tokens"][:-2]
    with pytest.raises(CheckpointError, match=r"has no special token <role> </role>: .* not a tokenizer of Ling"):
        Tokenizer(json.dumps(content))


def test_a_vocabulary_that_is_not_byte_level_is_refused(backend):
    content = json.loads(backend.to_str())
    content["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    with pytest.raises(CheckpointError, match="not byte-level: 254 of the 256 bytes have no token"):
        Tokenizer(json.dumps(content))
