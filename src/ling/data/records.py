"""Files as records, one after the other: jsonl by its lines, a JSON array by its elements, parquet by its rows.

A file is read as a stream; only a JSON array is held whole, as text. What is damaged stays inside its record wherever
the format can tell where the next one begins; a broken array cannot, and is refused as a whole.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ling.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet")
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


def read_records(path: Path) -> Iterator[Record]:
    """Read a file's records in order; blank lines are none. Raises DataError for a file that cannot be read."""
    try:
        if path.suffix.lower() == ".parquet":
            from ling.data.parquet import read_rows

            yield from read_rows(path)
        elif _starts_with_bracket(path):
            yield from _elements(path)
        else:
            yield from _lines(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _starts_with_bracket(path: Path) -> bool:
    """Say whether the file is one JSON array, whatever its name ends in."""
    with path.open("rb") as file:
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
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):  # split at \n alone
            end += len(line)
            line = line.removeprefix(_BOM) if number == 1 else line
            if line := line.strip(_BLANK):
                yield Record(number, line, end)


def _elements(path: Path) -> Iterator[Record]:
    """Read the elements of an array; `end_bytes` counts characters, which is near enough for a progress bar."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
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
