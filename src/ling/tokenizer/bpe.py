"""Vocabularies of Ling's kind, byte-level BPE: trained on text, or put together from their parts."""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, trainers

from ling.errors import CheckpointError, ConfigError, DataError
from ling.tokenizer.byte_level import BYTE_OF_CHARACTER, describe_surrogate, ling_pre_tokenizer
from ling.tokenizer.special import SPECIAL_TOKENS

MIN_PAIR_COUNT = 2
"""A pair seen once teaches nothing about the next text."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Learn merges from `texts` until the vocabulary has exactly `vocab_size` entries.

    Ids are 0..255 for the bytes, then the merges, then the special tokens in Ling's order. The same texts
    give the same vocabulary. Nothing is inserted when encoding, neither a first token nor a space.
    Raises ConfigError if not even bytes and special tokens fit, DataError if the texts yield too few merges
    or are no Unicode.
    """
    fixed = len(BYTE_OF_CHARACTER) + len(SPECIAL_TOKENS)
    if vocab_size < fixed:
        raise ConfigError(
            f"vocab_size must be at least {fixed} ({len(BYTE_OF_CHARACTER)} bytes and {len(SPECIAL_TOKENS)} "
            f"special tokens), got {vocab_size}"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ling_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=list(BYTE_OF_CHARACTER),
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except UnicodeEncodeError as error:
        raise DataError(f"a text to train on is not Unicode: {describe_surrogate(error)}") from None
    reached = tokenizer.get_vocab_size() + len(SPECIAL_TOKENS)
    if reached < vocab_size:
        raise DataError(
            f"the texts yield {reached - fixed} merges, a vocabulary of {vocab_size} needs "
            f"{vocab_size - fixed}. Give more text, or a vocab_size of at most {reached}."
        )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    assert tokenizer.get_vocab_size() == vocab_size, (tokenizer.get_vocab_size(), vocab_size)
    return tokenizer


def assemble_bpe(
    vocab: dict[str, int], merges: list[tuple[str, ...]], special: list[str], added: list[str], *, where: str
) -> tokenizers.Tokenizer:
    """Put a vocabulary of Ling's kind together; CheckpointError that starts with `where` if it contradicts itself.

    vocab           every token's id, in the byte alphabet; those of `special` and `added` as they are spelt
    merges          pairs of tokens, the first to be merged first
    special, added  tokens that text is searched for before it is cut; the former are never decoded to text
    """
    try:
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))  # type: ignore[arg-type]
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{where} holds a vocabulary that contradicts itself: {error}") from None
    tokenizer.pre_tokenizer = ling_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    return tokenizer
