"""Text to ids and back, with the special tokens under lock.

The `tokenizers` library does the work. It is held twice: once as it is, and once with the special tokens
switched off, so that text from outside can spell `<|role_end|>` without ending a turn.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import tokenizers

from ling.errors import CheckpointError, DataError
from ling.tokenizer.byte_level import BYTE_OF_CHARACTER, bytes_of, describe_surrogate
from ling.tokenizer.files import read_roles, read_serialized, write_files
from ling.tokenizer.special import CHAT, DOCUMENT_END, REQUIRED_TOKENS, SPECIAL_TOKENS, TURN_END, Roles

_MOST_IDS = 2**22
"""Ling has 157,184; a file may claim any."""
_LONG_TEXT = 2**13
"""Characters that take milliseconds, in which other threads should run."""


class Tokenizer:
    """A byte-level vocabulary with Ling's special tokens. Immutable; nothing is ever inserted."""

    def __init__(self, serialized: str, roles: Roles = CHAT, *, where: str = "the given tokenizer") -> None:
        """Take the text of a `tokenizer.json`; `where` names it in messages."""
        self._backend = _parse(serialized, where)
        self._roles = roles
        added = self._backend.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        self._special |= {token.content: id for id, token in added.items() if token.content in SPECIAL_TOKENS}
        self._bytes = _bytes_of_ids(self._backend, {id: token.content for id, token in added.items()}, where)
        self._check(where)
        self._plain = _parse(serialized, where)
        self._plain.add_special_tokens(list(self._special))  # also those that the file calls ordinary
        self._plain.encode_special_tokens = True
        self._special_ids = frozenset(self._special.values())

    @classmethod
    def from_directory(cls, path: Path | str) -> "Tokenizer":
        """Read a published or saved tokenizer. Raises CheckpointError if a file is missing or damaged."""
        directory = Path(path)
        return cls(read_serialized(directory), read_roles(directory), where=str(directory))

    @classmethod
    def from_backend(cls, backend: tokenizers.Tokenizer) -> "Tokenizer":
        """Take a copy of a tokenizer of the `tokenizers` library, such as `train_bpe` returns."""
        return cls(backend.to_str())

    def save(self, directory: Path | str, *, chat: bool = True) -> None:
        """Write the files that `from_directory` and transformers' `AutoTokenizer` read.

        chat  with the chat template, and `<|role_end|>` as the end of text; otherwise as a pre-trained model
        """
        write_files(Path(directory), self._backend.to_str(pretty=True), self._special, self._roles, chat=chat)

    @property
    def serialized(self) -> str:
        """The text of a `tokenizer.json`."""
        return self._backend.to_str()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Encode `text`. With `special=False`, special tokens spelt in it are ordinary text."""
        backend = self._backend if special else self._plain
        try:
            if len(text) > _LONG_TEXT:  # only a batch lets go of Python's lock; without offsets it is faster besides
                return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
            return backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"cannot encode text that is not Unicode: {describe_surrogate(error)}") from None
            raise

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Decode `ids`; bytes that are no UTF-8 become U+FFFD."""
        data = b"".join(self.token_bytes(id) for id in ids if not (skip_special and self.is_special(id)))
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """Give the bytes of one token; none for an id beyond the vocabulary (rows that pad the embedding)."""
        return self._bytes[id] if 0 <= id < len(self._bytes) else b""

    def is_special(self, id: int) -> bool:
        return id in self._special_ids

    def split_special(self, text: str) -> list[tuple[str, int | None]]:
        """Cut `text` into special tokens (with their id) and what lies between them (with None)."""
        parts = [part for part in self._special_pattern.split(text) if part]
        return [(part, self._special.get(part)) for part in parts]

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @property
    def vocab_size(self) -> int:
        """The highest id plus one: the embedding rows that mean something."""
        return len(self._bytes)

    @property
    def bos_id(self) -> int:
        return self._special[self._roles.bos]

    @property
    def eos_id(self) -> int:
        """End of text: `<|role_end|>` for a chat model, `<|endoftext|>` for a pre-trained one."""
        return self._special[self._roles.eos]

    @property
    def eod_id(self) -> int:
        """End of document, in pre-training data."""
        return self._special[DOCUMENT_END]

    @property
    def pad_id(self) -> int:
        return self._special[self._roles.pad]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id that ends an answer, in order."""
        return tuple(sorted({self.eos_id, self.eod_id, *self._roles.stop_ids}))

    @property
    def is_chat(self) -> bool:
        """Whether this is the tokenizer of a chat model, whose turns end in `<|role_end|>`."""
        return self._roles.eos == TURN_END

    def __reduce__(self) -> tuple[object, ...]:
        # The library forgets `encode_special_tokens` when pickled; a copy is built anew instead.
        return (Tokenizer, (self.serialized, self._roles))

    def _check(self, where: str) -> None:
        missing = [token for token in REQUIRED_TOKENS if token not in self._special]
        if missing:
            raise CheckpointError(
                f"{where} has no special token {' '.join(missing)}: it is not a tokenizer of Ling 2.0. "
                "Use the one that belongs to the model."
            )
        for role in ("bos", "eos", "pad"):
            if (token := getattr(self._roles, role)) not in self._special:
                raise CheckpointError(f"{where} names {token!r} as {role}_token, but has no such special token")
        if wrong := [id for id in self._roles.stop_ids if id >= self.vocab_size]:
            raise CheckpointError(
                f"{where} lists eos_token_id {wrong} in generation_config.json, but its vocabulary ends at "
                f"{self.vocab_size - 1}. The files belong to different models."
            )


def _parse(serialized: str, where: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(serialized)
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"tokenizer.json of {where} cannot be read: {reason}. Copy it again.") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def _bytes_of_ids(backend: tokenizers.Tokenizer, added: dict[int, str], where: str) -> list[bytes]:
    """List the bytes of every token by id; an id that the vocabulary skips has none."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if missing := len(BYTE_OF_CHARACTER.keys() - vocabulary.keys()):
        raise CheckpointError(
            f"{where} is not byte-level: {missing} of the 256 bytes have no token. "
            "Use the tokenizer that belongs to the model."
        )
    if (highest := max(vocabulary.values())) >= _MOST_IDS:
        raise CheckpointError(f"{where} numbers a token {highest:,}: tokenizer.json is damaged. Copy it again.")
    table = [b""] * (highest + 1)
    for token, id in vocabulary.items():
        table[id] = added[id].encode() if id in added else bytes_of(token)
    return table
