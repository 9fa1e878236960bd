"""Bits per byte of held-out text: comparable across tokenizers, and with models of bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from ling.eval.byte_ngram import ByteNgram
from ling.tokenizer import Tokenizer

Score = Callable[[Sequence[Sequence[int]]], list[list[float]]]
"""Token sequences to the nats of each token after the first."""


@dataclass(frozen=True, slots=True)
class BitsPerByte:
    """Information in some text. The first token of each document, which nothing comes before, is left out."""

    bits: float
    num_bytes: int

    @property
    def value(self) -> float:
        return self.bits / self.num_bytes


def bits_per_byte(
    score: Score, tokenizer: Tokenizer, documents: Sequence[str], *, window: int, stride: int
) -> BitsPerByte:
    """Measure a token model on `documents`.

    window  tokens seen at once
    stride  tokens by which it moves: every token but the first few of a document has at least window - stride before
    """
    assert 0 < stride < window, (stride, window)
    windows: list[list[int]] = []
    counted: list[int] = []  # per window, how many of its last tokens are scored
    num_bytes = 0
    for text in documents:
        tokens = tokenizer.encode(text, special=False)
        num_bytes += len(text.encode()) - len(tokenizer.token_bytes(tokens[0]))
        scored = 1
        for start in range(0, max(1, len(tokens) - window + stride), stride):
            part = tokens[start : start + window]
            if start + len(part) > scored:
                windows.append(part)
                counted.append(start + len(part) - scored)
                scored = start + len(part)
        assert scored == len(tokens), (scored, len(tokens))
    nats = sum(sum(losses[-n:]) for losses, n in zip(score(windows), counted, strict=True))
    return BitsPerByte(nats / log(2), num_bytes)


def ngram_bits_per_byte(
    model: ByteNgram, tokenizer: Tokenizer, documents: Sequence[str], order: int | None = None
) -> BitsPerByte:
    """Measure a byte n-gram model of some order on exactly the bytes that `bits_per_byte` counts."""
    bits, num_bytes = 0.0, 0
    for text in documents:
        skipped = len(tokenizer.token_bytes(tokenizer.encode(text, special=False)[0]))
        information = model.bits(text.encode(), order)[skipped:]
        bits += float(information.sum())
        num_bytes += len(information)
    return BitsPerByte(bits, num_bytes)
