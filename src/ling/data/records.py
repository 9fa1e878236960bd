"""Files as records, one after the other: jsonl by its lines, a JSON array by its elements, parquet by its rows.

All but parquet may be packed with gzip (`.jsonl.gz`). A file is read as a stream; only a JSON array is held whole, as
text. What is damaged stays inside its record wherever the format can tell where the next one begins; a broken array
cannot, and is refused as a whole.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

from ling.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet")
"""Files of records."""
TEXT_SUFFIXES = (".txt", ".md")
"""Files that are one document each."""
_PACKED = ".gz"
_CANNOT_READ = (OSError, EOFError, zlib.error)
"""Raised for files that are not there or not to be read, or packed and damaged."""
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"


class DamagedRecordError(DataError):
    """A record whose text is not JSON: what exactly is wrong."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record that is not parsed yet.

    place      line in the file, counted from 1; row, for parquet
    raw        bytes of a line, or what an array or a table holds
    end_bytes  how much of the file has been read when this record has
    """

    place: int
    raw: Any
    end_bytes: int

    def parse(self) -> Any:
        """Return the record's value. Raises DamagedRecordError."""
        if not isinstance(self.raw, bytes):
            return self.raw
        try:
            return read_json(self.raw.decode())
        except UnicodeDecodeError as error:
            raise DamagedRecordError(f"byte {error.start + 1} of the line is not UTF-8") from None
        except ValueError as error:
            raise DamagedRecordError(str(error)) from None


def kind_of(name: str | PurePath) -> str:
    """Return how a file's name ends, in small letters, without the `.gz` of a packed one."""
    path = PurePath(name)
    suffix, inner = path.suffix.lower(), PurePath(path.stem).suffix.lower()
    return inner if suffix == _PACKED and inner in SUFFIXES + TEXT_SUFFIXES and inner != ".parquet" else suffix


def read_records(path: Path, column: str | None = None) -> Iterator[Record]:
    """Read a file's records in order; blank lines are none. Raises DataError for a file that cannot be read.

    column  the only key that is asked for: of parquet, the others are not read, and a table must have it
    """
    try:
        if kind_of(path) == ".parquet":
            from ling.data.parquet import read_rows

            yield from read_rows(path, column)
        elif _starts_with_bracket(path):
            yield from _elements(path)
        else:
            yield from _lines(path)
    except _CANNOT_READ as error:
        raise _cannot_read(path, error) from None


def read_text(path: Path) -> str:
    """Read a text file, packed or not. Raises DataError for one that cannot be read or is not UTF-8."""
    try:
        with _open(path) as (file, _):
            return io.TextIOWrapper(file, encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    except _CANNOT_READ as error:
        raise _cannot_read(path, error) from None


def _cannot_read(path: Path, error: Exception) -> DataError:
    return DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")


@contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes] | None]]:
    """Yield a file's content, and the file itself if that is packed."""
    with path.open("rb") as file:
        if path.suffix.lower() != _PACKED:
            yield file, None
            return
        with gzip.GzipFile(fileobj=file) as content:
            yield io.BufferedReader(content), file


def _starts_with_bracket(path: Path) -> bool:
    """Say whether the file is one JSON array, whatever its name ends in."""
    with _open(path) as (file, _):
        head = file.read(4)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path} is UTF-16; save it as UTF-8")
        file.seek(len(_BOM) if head.startswith(_BOM) else 0)
        while block := file.read(4096):
            if text := block.strip(_BLANK):
                return text.startswith(b"[")
    return False


def _lines(path: Path) -> Iterator[Record]:
    end = 0
    with _open(path) as (file, packed):
        for number, line in enumerate(file, 1):  # split at \n alone
            end = end + len(line) if packed is None else packed.tell()
            line = line.removeprefix(_BOM) if number == 1 else line
            if line := line.strip(_BLANK):
                yield Record(number, line, end)


def _elements(path: Path) -> Iterator[Record]:
    """Read the elements of an array; `end_bytes` counts characters, which is near enough for a progress bar."""
    text = read_text(path)
    position, line, counted = text.index("[") + 1, 1, 0
    separator = "["
    while True:
        position = _skip_blanks(text, position)
        if text[position : position + 1] == "]" and separator != ",":
            break
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            at = position
            if isinstance(error, json.JSONDecodeError):
                what, at = error.msg, error.pos
            raise _broken(path, text, at, what) from None
        yield Record(line, value, position)
        position = _skip_blanks(text, position)
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            raise _broken(path, text, position, "expecting , or ]")
        position += 1
    if text[position + 1 :].strip():
        raise _broken(path, text, position + 1, "text after the array's end")


def _skip_blanks(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def _broken(path: Path, text: str, position: int, what: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    return DataError(
        f"{path}:{line}: the JSON array is broken: {what}. Nothing behind can be told apart; mend it, or write jsonl"
    )


def read_json(text: str) -> Any:
    """Read JSON as the standard has it. Raises ValueError with one short line."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(spelling: str) -> None:
    raise ValueError(f"{spelling} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
