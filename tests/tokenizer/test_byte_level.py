"""The byte alphabet is the library's, and text is cut as Ling's pre-tokenizer cuts it."""

import pytest
from tokenizers import pre_tokenizers

from ling.tokenizer.byte_level import BYTE_OF_CHARACTER, bytes_of, ling_pre_tokenizer


def test_alphabet_is_the_one_of_the_tokenizers_library():
    assert set(BYTE_OF_CHARACTER) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_CHARACTER.values()) == list(range(256))


def test_every_byte_is_spelt_as_the_library_spells_it():
    for character in ("A", " ", "\n", "é", "上", "🌸", "\x7f", "\xa0", "\xad"):
        [(spelling, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)
        assert bytes_of(spelling) == character.encode()


def test_a_token_outside_the_alphabet_is_its_own_utf8():
    assert bytes_of("上海") == "上海".encode()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", " world"]),
        ("it's IT'S", ["it", "'s", " IT", "'S"]),
        ("in 2024", ["in", " ", "2", "0", "2", "4"]),
        ("a  b", ["a", " ", " b"]),
        ("x += 1;\n\ny", ["x", " +=", " ", "1", ";\n\n", "y"]),
        ("a \n\n b ", ["a", " \n\n", " b", " "]),
        ("(你好，世界)", ["(你好", "，世界", ")"]),
    ],
)
def test_text_is_cut_as_by_the_published_pattern(text, pieces):
    cut = ling_pre_tokenizer().pre_tokenize_str(text)
    assert [bytes_of(piece).decode() for piece, _ in cut] == pieces
