"""The built-in books are whole, clean, and described where and as they are."""

import dataclasses
import importlib.util
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

from ling.data import builtin
from ling.data.builtin import BOOKS, read_book, read_documents
from ling.errors import DataError

FOLDER = Path(str(files(builtin)))
ENGLISH = [book.name for book in BOOKS if book.language == "en"]

DOCUMENTS = {  # chapters of the printed books, and the pieces named on the right
    "emma": 18 + 18 + 19,
    "mansfield_park": 48,
    "northanger_abbey": 31 + 1,  # advertisement
    "persuasion": 24,
    "pride_and_prejudice": 61,
    "sense_and_sensibility": 50,
    "moby_dick": 135 + 3,  # etymology, extracts, epilogue
    "web_old_testament_1": 436,
    "web_old_testament_2": 929 - 436,
    "web_new_testament": 260,  # 1,189 chapters in the 66 books
}


@cache
def documents(name: str) -> tuple[str, ...]:
    return tuple(read_book(name))


def load_build_script() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "build_builtin_corpus.py"
    spec = importlib.util.spec_from_file_location("build_builtin_corpus", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_is_in_the_table_and_under_one_megabyte():
    sizes = {path.name: path.stat().st_size for path in FOLDER.glob("*.xz")}
    assert set(sizes) == {f"{book.name}.txt.xz" for book in BOOKS}
    assert max(sizes.values()) < 1_000_000, sizes


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_checksums_hold_and_the_table_tells_the_sizes(book):
    rows = json.loads((FOLDER / "books.json").read_text(encoding="utf-8"))["books"]
    row = next(row for row in rows if row["name"] == book.name)
    text = builtin.DOCUMENT_SEPARATOR.join(documents(book.name)) + "\n"
    assert (len(documents(book.name)), len(text.encode())) == (row["documents"], row["text_bytes"])


@pytest.mark.parametrize("name", ENGLISH)
def test_english_books_have_every_chapter_once(name):
    headings = [document.split("\n\n")[0] for document in documents(name)]
    assert len(headings) == DOCUMENTS[name] == len(set(headings))
    assert all(len(document) > len(heading) + 100 for heading, document in zip(headings, documents(name)))


OPENINGS = [
    (
        "pride_and_prejudice",
        0,
        "Pride and Prejudice, Chapter 1\n\nIt is a truth universally acknowledged, that a",
    ),
    ("emma", 18, "Emma, Volume 2, Chapter 1\n\nEmma and Harriet had been walking together one morning, "),
    ("moby_dick", 2, "Moby Dick, Chapter 1: Loomings\n\nCall me Ishmael. Some years ago--never mind how "),
    ("web_old_testament_1", 0, "Genesis 1\n\nIn the beginning, God created the heavens and the earth. "),
    ("web_old_testament_2", 64, "Psalm 23\n\nA Psalm by David.\n\nYahweh is my shepherd;\nI shall lack "),
    ("web_new_testament", -1, "Revelation 22\n\nHe showed me a river of water of life, clear as crystal,"),
]


@pytest.mark.parametrize(("name", "index", "start"), OPENINGS, ids=[name for name, _, _ in OPENINGS])
def test_documents_start_with_their_heading_and_known_words(name, index, start):
    assert documents(name)[index][: len(start)] == start


@pytest.mark.parametrize("name", ENGLISH)
def test_english_text_has_no_markup_or_boilerplate(name):
    left_over = r"[_*<>{}=|~^\\\x1e\r\t\u2010-\u201f]|&(?!c?[;.])\w+;|  | \n|\n\n\n|Gutenberg|strong:|https?:"
    assert re.findall(left_over, "\n".join(documents(name))) == []


@pytest.mark.parametrize("name", [name for name in ENGLISH if not name.startswith("web_")])
def test_lines_of_prose_are_joined(name):
    paragraphs = [paragraph for document in documents(name) for paragraph in document.split("\n\n")]
    assert [paragraph for paragraph in paragraphs if re.search(r"\n[a-z]", paragraph)] == []


def test_bible_keeps_the_text_and_drops_numbers_and_notes():
    chapters = [text for name in ENGLISH if name.startswith("web_") for text in documents(name)]
    text = "\n".join(chapter.split("\n\n", 1)[1] for chapter in chapters)
    assert len(chapters) == 1189
    assert re.findall(r"\d", text) == []
    assert re.findall(r"[a-z][A-Z]|[.,;:?!][A-Za-z]|\w\(", text) == [], "a space is missing"
    assert re.findall(r"\( | [.,;:?!)]", text) == [], "a space too many"
    assert "he approves. But he who doubts is condemned" in text, "Romans 14:23, not listed in the module"


def test_tang_poems_are_title_author_and_four_lines_of_five_or_seven():
    assert len(documents("tang_quatrains")) > 14_000
    for poem in documents("tang_quatrains"):
        title, author, *couplets = poem.split("\n")
        verses = [verse for couplet in couplets for verse in re.split("[，；？！。]", couplet) if verse]
        assert title.strip(), poem
        assert author.strip(), poem
        assert len(couplets) == 2, poem
        assert [len(verse) for verse in verses] in ([5] * 4, [7] * 4), poem
        assert not re.search(r"[□●○\ue000-\uf8ff\ufffd\[\]{}（）]|[A-Za-z0-9]", poem), poem


def test_no_document_occurs_twice():
    texts = [document for _, document in read_documents()]
    assert len(texts) == len(set(texts))


def test_documents_are_read_by_language():
    assert {name for name, _ in read_documents("zh")} == {"tang_quatrains"}
    assert len(read_documents("en")) + len(read_documents("zh")) == len(read_documents())
    with pytest.raises(DataError, match=r"'english'.*Known: en, zh"):
        read_documents("english")


def test_an_unknown_name_lists_the_books_and_suggests_one():
    with pytest.raises(DataError, match=r"'moby_dik'; did you mean moby_dick\? Known: emma, .*tang"):
        read_book("moby_dik")


def test_a_wrong_checksum_names_the_file(monkeypatch):
    damaged = dataclasses.replace(BOOKS[0], sha256="0" * 64)
    monkeypatch.setattr(builtin, "BOOKS", (damaged,))
    with pytest.raises(DataError, match=rf"{damaged.name}\.txt\.xz has sha256 .* damaged") as error:
        read_book(damaged.name)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(monkeypatch):
    monkeypatch.setattr(builtin, "BOOKS", (dataclasses.replace(BOOKS[0], name="ulysses"),))
    with pytest.raises(DataError, match=r"ulysses\.txt\.xz is missing"):
        read_book("ulysses")


def test_sources_page_is_what_the_table_says(monkeypatch):
    script = load_build_script()
    table = json.loads((FOLDER / "books.json").read_text(encoding="utf-8"))
    assert (FOLDER / "SOURCES.md").read_text(encoding="utf-8") == script.render_sources(table)
    assert table["packages"] == [script.describe(package) for package in script.PACKAGES]
