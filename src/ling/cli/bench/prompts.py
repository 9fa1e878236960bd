"""What a server is asked: random tokens, passages of the built-in books, or a file of one's own."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ling.errors import DataError

DatasetName = Literal["random", "books", "jsonl"]

Content = str | list[int] | list[Mapping[str, Any]]
"""Text, token ids, or the messages of a chat."""

_BOOK = "emma"
_FIRST_ID = 8
"""Below it vocabularies like to keep their special tokens."""


@dataclass(frozen=True, slots=True)
class Prompt:
    content: Content
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPrompts:
    """Prompts that are all different, and the same for the same seed.

    input_len, output_len  tokens
    range_ratio            r: each length is drawn from the whole numbers between (1 - r) and (1 + r) times it
    prefix_len             tokens that all prompts begin with, on top of `input_len`
    vocab_size             ids are drawn below it
    """

    input_len: int
    output_len: int
    range_ratio: float = 0.0
    prefix_len: int = 0
    vocab_size: int = 1024
    seed: int = 0

    def ids(self, count: int) -> Iterator[Prompt]:
        """Yield prompts of token ids."""
        draw = random.Random(self.seed)
        prefix = self._ids(draw, self.prefix_len)
        for _ in range(count):
            yield Prompt(prefix + self._ids(draw, self._length(draw, self.input_len)), self._output(draw))

    def words(self, count: int) -> Iterator[Prompt]:
        """Yield prompts of random words, for servers that take no ids; a word is a token or two."""
        draw = random.Random(self.seed)
        words = [word for word in _book().split() if word.isalpha()]
        prefix = draw.choices(words, k=self.prefix_len)
        for _ in range(count):
            chosen = draw.choices(words, k=self._length(draw, self.input_len))
            yield Prompt(" ".join(prefix + chosen), self._output(draw))

    def passages(self, count: int) -> Iterator[Prompt]:
        """Yield passages of a novel, each from another place; lengths in words."""
        draw = random.Random(self.seed)
        words = _book().split(" ")
        for _ in range(count):
            length = min(self._length(draw, self.input_len), len(words))
            start = draw.randrange(len(words) - length + 1)
            yield Prompt(" ".join(words[start : start + length]), self._output(draw))

    def _ids(self, draw: random.Random, length: int) -> list[int]:
        first = min(_FIRST_ID, self.vocab_size - 1)
        return [draw.randrange(first, self.vocab_size) for _ in range(length)]

    def _output(self, draw: random.Random) -> int:
        return self._length(draw, self.output_len)

    def _length(self, draw: random.Random, mean: int) -> int:
        if not self.range_ratio:
            return mean
        return draw.randint(max(1, round(mean * (1 - self.range_ratio))), max(1, round(mean * (1 + self.range_ratio))))


def read_prompts(file: Path, count: int, output_len: int) -> Iterator[Prompt]:
    """Yield `count` prompts of a file of records, from its start again where it has fewer.

    A record holds `prompt`, text or token ids, or `messages`; and perhaps `max_tokens`. Raises DataError for others.
    """
    from ling.data.records import DamagedRecordError, read_records

    found: list[Prompt] = []
    for record in read_records(file):
        if len(found) == count:
            break
        try:
            value = record.parse()
        except DamagedRecordError as error:
            raise DataError(f"{file}:{record.place}: {error}") from None
        found.append(_prompt(value, output_len, f"{file}:{record.place}"))
    if not found:
        raise DataError(f"{file} has no prompts")
    for index in range(count):
        yield found[index % len(found)]


def _prompt(value: Any, output_len: int, where: str) -> Prompt:
    record = value if isinstance(value, dict) else {}
    content = record.get("messages", record.get("prompt"))
    is_ids = isinstance(content, list) and all(type(x) is int for x in content)
    is_chat = isinstance(content, list) and all(isinstance(x, dict) for x in content)
    if not content or not (isinstance(content, str) or (is_chat if "messages" in record else is_ids)):
        raise DataError(f"{where}: a record needs prompt (text or token ids) or messages (a list)")
    tokens = record.get("max_tokens", output_len)
    if type(tokens) is not int or tokens < 1:
        raise DataError(f"{where}: max_tokens must be a whole number above 0, got {tokens!r}")
    return Prompt(content, tokens)


def _book() -> str:
    from ling.data.builtin import read_book

    return "\n\n".join(read_book(_BOOK))
