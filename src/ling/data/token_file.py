"""Token files: Megatron's indexed data set, `NAME.bin` with the tokens and `NAME.idx` with where documents begin.

    NAME.bin   ids, one document after the other
    NAME.idx   MMIDIDX\0\0, version 1 (u64), code of the ids' type (u8), S sequences (u64), D document ends (u64),
               lengths (S, i32), byte offsets into .bin (S, i64), the sequence that each document begins with (D, i64;
               the last entry is S)

Both are memory-mapped and never read as a whole: a file of a billion tokens opens in a millisecond. What the header
claims is compared with the sizes of the files before anything is made of it.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ling.errors import DataError

NAME = "tokens"
"""Of the files in a prepared directory."""
TOKENIZER_NAME = "tokenizer"
"""Of the tokenizer's directory beside them."""
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<QBQQ")
_TYPES: dict[int, type[np.integer]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_CODES = {kind: code for code, kind in _TYPES.items()}


class TokenFile:
    """A token file to read from.

    path  without its ending, or with either; or a directory that `ling data prepare` made
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path) / NAME if Path(path).is_dir() else without_suffix(Path(path))
        index, tokens = self.path.with_name(f"{self.path.name}.idx"), self.path.with_name(f"{self.path.name}.bin")
        try:
            with index.open("rb") as file:
                head = file.read(len(_MAGIC) + _HEADER.size)
            index_bytes, token_bytes = index.stat().st_size, tokens.stat().st_size
        except OSError as error:
            raise DataError(
                f"cannot read token file {error.filename or index}: {error.strerror}; `ling data prepare` makes them"
            ) from None
        if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + _HEADER.size:
            raise DataError(f"{index} is not the index of a token file; `ling data prepare` makes them")
        version, code, sequences, ends = _HEADER.unpack_from(head, len(_MAGIC))
        if version != 1 or code not in _TYPES:
            raise DataError(f"{index} has version {version} and type {code}; version 1 with integers is read")
        wanted = len(head) + 12 * sequences + 8 * ends
        if index_bytes < wanted or ends < 1:
            raise DataError(
                f"{index} is damaged: {sequences} sequences and {ends} document ends need {wanted} bytes, it has "
                f"{index_bytes}; copy it again"
            )
        self.num_documents = ends - 1
        self.dtype = np.dtype(_TYPES[code])
        self.tokens: NDArray[np.integer] = _map(tokens, self.dtype, 0, token_bytes // self.dtype.itemsize)
        self._lengths = _map(index, np.dtype(np.int32), len(head), sequences)
        self._offsets = _map(index, np.dtype(np.int64), len(head) + 4 * sequences, sequences)
        self._first = _map(index, np.dtype(np.int64), len(head) + 12 * sequences, ends)
        last = int(self._offsets[-1]) + int(self._lengths[-1]) * self.dtype.itemsize if sequences else 0
        if int(self._first[-1]) != sequences or last > token_bytes:
            raise DataError(f"{tokens} has {token_bytes} bytes where its index needs {last}; copy both again")
        self.num_tokens = last // self.dtype.itemsize

    def start(self, document: int) -> int:
        """Return the place of a document's first token; that after the last one for `num_documents`."""
        if document == self.num_documents:
            return self.num_tokens
        return int(self._offsets[int(self._first[document])]) // self.dtype.itemsize

    def document_at(self, place: int) -> int:
        """Return the document that the token at `place` belongs to, by bisection."""
        low, high = 0, self.num_documents
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.start(middle) <= place else (low, middle)
        return low

    def pieces(self, start: int, end: int) -> Iterator[NDArray[np.integer]]:
        """Yield the tokens from `start` up to `end`, cut where documents begin."""
        document = self.document_at(start)
        while start < end:
            stop = min(end, self.start(document + 1))
            if stop > start:
                yield self.tokens[start:stop]
            start, document = max(start, stop), document + 1

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer that lies beside the file, if there is one."""
        path = self.path.with_name(TOKENIZER_NAME)
        return path if self.path.name == NAME and path.is_dir() else None

    @property
    def facts(self) -> dict[str, object]:
        """What `ling data prepare` left beside the file: tokenizer, sources; {} for others' files."""
        path = self.path.with_name(f"{self.path.name}.json")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            raise DataError(f"{path} is damaged; remove it, or prepare the file again") from None
        return found if isinstance(found, dict) else {}


class TokenWriter:
    """Appends documents; `write_tokens` makes one."""

    def __init__(self, tokens: IO[bytes], dtype: np.dtype[np.integer]) -> None:
        self._file, self._dtype = tokens, dtype
        self.lengths: list[int] = []

    def add(self, document: NDArray[np.integer]) -> None:
        """Append a document of at least one token."""
        assert len(document), "an empty document"
        self._file.write(document.astype(self._dtype).tobytes())
        self.lengths.append(len(document))

    def index(self) -> Iterator[bytes]:
        """Yield the index of what was written."""
        lengths = np.array(self.lengths, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64)
        count = len(lengths)
        yield _MAGIC + _HEADER.pack(1, _CODES[self._dtype.type], count, count + 1)
        yield lengths.tobytes()
        yield ((ends - lengths) * self._dtype.itemsize).tobytes()
        yield np.arange(count + 1, dtype=np.int64).tobytes()


@contextmanager
def write_tokens(directory: Path, name: str, vocab_size: int) -> Iterator[TokenWriter]:
    """Write NAME.bin, and NAME.idx at the end, into a directory; ids take the fewest bytes that hold the vocabulary."""
    dtype: np.dtype[np.integer] = np.dtype(np.uint16) if vocab_size <= 2**16 else np.dtype(np.int32)
    with ExitStack() as stack:
        writer = TokenWriter(stack.enter_context((directory / f"{name}.bin").open("wb")), dtype)
        yield writer
    with (directory / f"{name}.idx").open("wb") as file:
        for part in writer.index():
            file.write(part)


def without_suffix(path: Path) -> Path:
    """Return the name that both files share."""
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _map(path: Path, dtype: np.dtype[np.integer], offset: int, count: int) -> NDArray[np.integer]:
    if count == 0:
        return np.empty(0, dtype)  # nothing cannot be mapped
    return np.memmap(path, dtype, "r", offset, (count,))
