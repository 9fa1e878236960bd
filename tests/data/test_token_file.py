"""Token files: what is written is read, whoever wrote it, and lies are refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from ling.data.token_file import TokenFile, write_tokens
from ling.errors import DataError

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    with write_tokens(tmp_path, "a", 300) as writer:
        for document in DOCUMENTS:
            writer.add(np.array(document))
    return tmp_path / "a"


def test_documents_come_back_and_small_vocabularies_take_two_bytes(made: Path) -> None:
    file = TokenFile(made)
    assert (file.num_documents, file.num_tokens, file.dtype) == (4, 11, np.uint16)
    assert [p.tolist() for p in file.pieces(0, 11)] == DOCUMENTS
    assert TokenFile(made.with_suffix(".idx")).num_tokens == TokenFile(made.with_suffix(".bin")).num_tokens == 11


@pytest.mark.parametrize(("start", "end"), [(0, 1), (2, 5), (3, 4), (4, 9), (1, 11), (10, 11)])
def test_any_stretch_is_cut_where_documents_begin(made: Path, start: int, end: int) -> None:
    pieces = [p.tolist() for p in TokenFile(made).pieces(start, end)]
    assert [t for p in pieces for t in p] == list(range(start + 1, end + 1))
    begins = {1, 4, 5, 10}
    assert all(t not in begins for p in pieces for t in p[1:])
    assert all(p[0] in begins for p in pieces[1:])


def test_documents_of_several_sentences_with_32_bit_ids_are_read_as_megatron_writes_them(tmp_path: Path) -> None:
    np.arange(10, dtype=np.int32).tofile(tmp_path / "b.bin")
    lengths, offsets, first = [4, 1, 3, 2], [0, 16, 20, 32], [0, 2, 3, 4]  # three documents, the first of two sentences
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 4, 4)
    index += struct.pack("<4i", *lengths) + struct.pack("<4q", *offsets) + struct.pack("<4q", *first)
    (tmp_path / "b.idx").write_bytes(index)
    file = TokenFile(tmp_path / "b")
    assert [p.tolist() for p in file.pieces(0, 10)] == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: p.with_suffix(".idx").unlink(), "cannot read token file .*a.idx: No such file"),
        (lambda p: p.with_suffix(".bin").unlink(), "cannot read token file .*a.bin: No such file"),
        (lambda p: cut(p.with_suffix(".idx"), 12), "is not the index of a token file"),
        (lambda p: cut(p.with_suffix(".idx"), 60), "4 sequences and 5 document ends need 122 bytes, it has 60"),
        (lambda p: cut(p.with_suffix(".bin"), 20), "has 20 bytes where its index needs 22"),
        (lambda p: put(p.with_suffix(".idx"), 18, 2**60), "is damaged: 1152921504606846976 sequences"),
        (lambda p: put(p.with_suffix(".idx"), 9, 7), "has version 7 and type 8"),
        (lambda p: p.with_suffix(".idx").write_bytes(b"x" * 200), "is not the index of a token file"),
    ],
)
def test_what_is_missing_cut_or_lying_is_one_line(made: Path, break_it: object, message: str) -> None:
    break_it(made)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        TokenFile(made)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def put(path: Path, at: int, number: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + 8] = struct.pack("<Q", number)
    path.write_bytes(bytes(data))
