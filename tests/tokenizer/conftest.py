"""One small tokenizer for all tests of this folder."""

import argparse
import inspect

import pytest
import tokenizers

from ling.tokenizer import Tokenizer, train_bpe

VOCAB_SIZE = 700
TEXTS = [
    inspect.getsource(argparse),
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 3,
    "🌸 日本語 ünï 🌸",
]


@pytest.fixture(scope="session")
def backend() -> tokenizers.Tokenizer:
    return train_bpe(TEXTS, VOCAB_SIZE)


@pytest.fixture(scope="session")
def tokenizer(backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer.from_backend(backend)
