"""Public-domain books that ship inside the package, so that training works with no network at all.

`books.json` is the one table of what is here; `tools/build_builtin_corpus.py` writes it, the `.txt.xz` files
and `SOURCES.md` (where each text comes from and under which terms). A book is a list of documents: a chapter
of a novel, a chapter of the Bible, or one poem. Inside a file they are parted by `DOCUMENT_SEPARATOR`.
"""

import hashlib
import json
import lzma
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.resources import files

from ling.errors import DataError

DOCUMENT_SEPARATOR = "\n\x1e\n"
"""Between two documents: U+001E RECORD SEPARATOR alone on a line. The last document ends in a newline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    name: str
    """Stem of its file: `emma` is `emma.txt.xz`."""
    title: str
    author: str
    language: str
    """`en` or `zh`."""
    licence: str
    sha256: str
    """Of the compressed file."""


def _read_table() -> tuple[Book, ...]:
    rows = json.loads((files(__name__) / "books.json").read_text(encoding="utf-8"))["books"]
    return tuple(Book(**{field.name: row[field.name] for field in fields(Book)}) for row in rows)


BOOKS = _read_table()


def read_book(name: str) -> list[str]:
    """Read one book as its documents, after checking that the file is the one in the table."""
    book = next((book for book in BOOKS if book.name == name), None)
    if book is None:
        raise DataError(_unknown("built-in book", name, [book.name for book in BOOKS]))
    path = files(__name__) / f"{name}.txt.xz"
    try:
        compressed = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: the installation is incomplete. Install ling again.") from None
    sha256 = hashlib.sha256(compressed).hexdigest()
    if sha256 != book.sha256:
        raise DataError(
            f"{path} has sha256 {sha256}, books.json says {book.sha256}: the file is damaged. Install ling again."
        )
    return lzma.decompress(compressed).decode().removesuffix("\n").split(DOCUMENT_SEPARATOR)


def read_documents(language: str | None = None) -> list[tuple[str, str]]:
    """Read every book, or those in one language, as (book name, document) pairs in table order."""
    languages = sorted({book.language for book in BOOKS})
    if language is not None and language not in languages:
        raise DataError(_unknown("language of built-in books", language, languages))
    names = [book.name for book in BOOKS if language in (None, book.language)]
    return [(name, document) for name in names for document in read_book(name)]


def _unknown(what: str, given: str, known: list[str]) -> str:
    close = get_close_matches(given, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"unknown {what} {given!r}{hint} Known: {', '.join(known)}"
