"""Text files to a token file: documents in their order, whatever the number of processes.

Free of torch, since every worker process imports it.
"""

import collections
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ling.config.fields import shown
from ling.data.records import SUFFIXES, TEXT_SUFFIXES, DamagedRecordError, Record, kind_of, read_records, read_text
from ling.data.token_file import NAME, write_tokens
from ling.data.workers import map_in_order
from ling.errors import DataError
from ling.hub import NAME as NAME_ON_HUB
from ling.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**20
_CHUNK_RECORDS = 1024
_MOST_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one file, and the bytes of all files read when they are done."""

    file: Path
    records: tuple[Record, ...]
    end_bytes: int


@dataclass(frozen=True, slots=True)
class Tokenize:
    """What is done to a chunk, here or in another process."""

    tokenizer: Tokenizer
    key: str
    append_end: bool

    def __call__(self, chunk: Chunk) -> list[NDArray[np.int32] | str]:
        """Return each record's tokens, or why it has none."""
        return [self._one(record) for record in chunk.records]

    def _one(self, record: Record) -> NDArray[np.int32] | str:
        try:
            value = record.raw if isinstance(record.raw, str) else record.parse()
            text = value if isinstance(value, str) else value.get(self.key) if isinstance(value, dict) else None
            if not isinstance(text, str):
                return f"no text under the key {self.key!r}: {_what_is_there(value, self.key)}"
            ids = self.tokenizer.encode(text, special=False)
        except DamagedRecordError as error:
            return f"damaged record: {error}"
        except DataError as error:
            return str(error)
        if not ids:
            return "empty text"
        return np.array([*ids, self.tokenizer.eod_id] if self.append_end else ids, np.int32)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of the records."""

    documents: int
    tokens: int
    left_out: dict[str, int]
    """Records by reason."""


def find_texts(sources: Sequence[Path]) -> list[Path]:
    """Return the files that paths name, those of directories by name; DataError for what is not there or not text."""
    found: list[Path] = []
    known = (*SUFFIXES, *TEXT_SUFFIXES)
    for source in sources:
        files = [source]
        if source.is_dir():
            files = sorted(path for path in source.rglob("*") if kind_of(path) in known)
            if not files:
                raise DataError(f"{source} holds no file that ends in {', '.join(known)}")
        elif not source.is_file():
            may_be_name = NAME_ON_HUB.fullmatch(str(source)) and kind_of(source) not in known
            hint = (
                f"; a data set on Hugging Face is hf://{source}" if may_be_name and not source.parent.is_dir() else ""
            )
            raise DataError(f"there is no data file {source}{hint}")
        elif kind_of(source) not in known:
            raise DataError(f"{source} ends in none of {', '.join(known)}; convert it to jsonl")
        found += files
    return found


def prepare_tokens(
    files: Sequence[Path],
    directory: Path,
    work: Tokenize,
    *,
    workers: int,
    progress: Callable[[int, int], None],
    names: Sequence[str] | None = None,
) -> Prepared:
    """Tokenise `files` into `directory`: `tokens.bin`, `tokens.idx`, `tokens.json`.

    progress  is called with bytes read and in all
    names     what to write down as the files' origin; left out, their names
    Raises DataError if there is not one document.
    """
    total = sum(file.stat().st_size for file in files)
    left_out: collections.Counter[str] = collections.Counter()
    first = ""
    with write_tokens(directory, NAME, work.tokenizer.vocab_size) as writer:
        for chunk, documents in map_in_order(work, _chunks(files, work.key), workers, advice="lower --workers"):
            for record, tokens in zip(chunk.records, documents):
                if isinstance(tokens, str):
                    first = first or f"{chunk.file}:{record.place}: {tokens}"
                    left_out[tokens.partition(":")[0]] += 1
                else:
                    writer.add(tokens)
            progress(min(chunk.end_bytes, total), total)
    prepared = Prepared(len(writer.lengths), sum(writer.lengths), dict(left_out))
    if not prepared.documents:
        more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
        raise DataError(f"there is no document in {files[0]}{more}; the first record: {first or 'none'}")
    if left_out:
        logger.warning("%d records are left out; the first: %s", left_out.total(), first)
    facts = {
        "documents": prepared.documents, "tokens": prepared.tokens, "vocab_size": work.tokenizer.vocab_size,
        "sources": list(names or [file.name for file in files]), "left_out": prepared.left_out,
    }  # fmt: skip
    (directory / f"{NAME}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return prepared


def _what_is_there(value: object, key: str) -> str:
    if not isinstance(value, dict):
        return f"the record is {shown(value)}"
    if value.get(key) is not None:
        return f"it is {shown(value[key])}"
    return f"the record has {', '.join(map(repr, value)) or 'nothing'}"[:_MOST_CHARACTERS]


def _chunks(files: Sequence[Path], key: str) -> Iterator[Chunk]:
    before = 0
    for file in files:
        waiting: list[Record] = []
        begun = end = 0
        for record in _records(file, key):
            waiting.append(record)
            end = record.end_bytes
            if end - begun >= _CHUNK_BYTES or len(waiting) == _CHUNK_RECORDS:
                yield Chunk(file, tuple(waiting), before + end)
                waiting, begun = [], end
        before += file.stat().st_size
        if waiting:
            yield Chunk(file, tuple(waiting), before)


def _records(file: Path, key: str) -> Iterator[Record]:
    if kind_of(file) not in TEXT_SUFFIXES:
        yield from read_records(file, key)
        return
    if (text := read_text(file)).strip():
        yield Record(1, text, len(text))
