"""Bytes as characters: how a byte-level vocabulary spells its tokens, and how Ling cuts text before merging.

A token of such a vocabulary is a string in an alphabet of 256 printable characters, one for each byte
(GPT-2's idea): a byte that prints in Latin-1 stands for itself, the others are moved to U+0100 and after, in
order. So a space is U+0120, and a token may be half of a Chinese character.
"""

from tokenizers import Regex, pre_tokenizers

# Contractions; a word with at most one sign before it; each digit alone; signs with a space before them and
# line ends after them; line ends with the blanks before them; blanks, leaving the last to the next word.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def _byte_of_character() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(moved)}


BYTE_OF_CHARACTER = _byte_of_character()


def bytes_of(token: str) -> bytes:
    """Translate a token as the vocabulary spells it into the bytes it stands for.

    A token with a character outside the alphabet stands for its own UTF-8, as in the `tokenizers` library.
    """
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()


def ling_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cut text by `SPLIT_PATTERN`, then spell the pieces in the byte alphabet; no space is added in front."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def describe_surrogate(error: UnicodeEncodeError) -> str:
    """Say where a Python string holds half of a surrogate pair, which no UTF-8 can spell."""
    code = ord(error.object[error.start])
    return (
        f"character {error.start} is U+{code:04X}, half of a surrogate pair (often a \\u escape cut in two). "
        "Replace it."
    )
