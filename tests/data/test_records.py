"""Files as records: places are lines, damage stays inside its record."""

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokenizer.chats import json_value

from ling.data.records import DamagedRecordError, kind_of, read_records
from ling.errors import ConfigError, DataError


def parsed(path: Path) -> list[tuple[int, Any]]:
    found = []
    for record in read_records(path):
        try:
            found.append((record.place, record.parse()))
        except DamagedRecordError as error:
            found.append((record.place, str(error)))
    return found


def test_a_damaged_line_spoils_no_other(tmp_path: Path) -> None:
    lines = [
        b"\xef\xbb\xbf{}",
        b"",
        b"{",
        b'{"a": "\xff"}',
        b'{"a": NaN}',
        b"[" * 100_000,
        b"  ",
        b'"\xe2\x80\xa8"',
        b"3",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(lines))
    assert parsed(tmp_path / "a.jsonl") == [
        (1, {}),
        (3, "Expecting property name enclosed in double quotes at character 2"),
        (4, "byte 8 of the line is not UTF-8"),
        (5, "NaN is not JSON"),
        (6, "nested too deeply"),
        (8, "\u2028"),
        (9, 3),
    ]


@given(st.lists(json_value, max_size=4), st.sampled_from([None, 2]), st.booleans())
def test_arrays_and_lines_give_the_same_records(
    tmp_path_factory: Any, values: list[Any], indent: int | None, bom: bool
) -> None:
    directory = tmp_path_factory.mktemp("records")
    encoding = "utf-8-sig" if bom else "utf-8"
    (directory / "a.json").write_text(json.dumps(values, indent=indent), encoding=encoding)
    (directory / "b.json").write_text("\n".join(map(json.dumps, values)), encoding=encoding)
    array = [value for _, value in parsed(directory / "a.json")]
    assert array == values
    if not values or not isinstance(values[0], list):
        assert [value for _, value in parsed(directory / "b.json")] == values


def test_elements_know_the_line_they_begin_on(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n{"a": 1},\n\n{"a":\n2}, {"a": 3}\n]\n')
    assert parsed(tmp_path / "a.json") == [(2, {"a": 1}), (4, {"a": 2}), (5, {"a": 3})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n{"a": 1},\n{"a": ', r"a.json:3: the JSON array is broken: Expecting value\. Nothing behind"),
        (b"[1 2]", "a.json:1: the JSON array is broken: expecting , or ]"),
        (b"[1,]", "broken: Expecting value"),
        (b"[1] 2", "broken: text after the array's end"),
        (b"[NaN]", "broken: NaN is not JSON"),
        (b"[" * 100_000, "broken: nested too deeply"),
        (b"[\xff]", r"a.json is not UTF-8 \(byte 2\); save it as UTF-8"),
        ("[1]".encode("utf-16"), "a.json is UTF-16; save it as UTF-8"),
    ],
)
def test_a_broken_array_is_refused_as_a_whole(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        parsed(tmp_path / "a.json")


@given(st.binary(max_size=60) | st.text('[]{},:"0 \n', max_size=40).map(str.encode))
def test_any_bytes_are_records_or_one_line(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(content)
    try:
        found = parsed(path)
    except DataError:
        pass
    else:
        assert len(found) <= content.count(b"\n") + 1 or content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch(mode=0)
    with pytest.raises(DataError, match="cannot read"):
        parsed(tmp_path / "a.jsonl")


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'pip install "ling\[parquet\]"'):
        parsed(tmp_path / "a.parquet")


def test_parquet_rows_are_records(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    rows = [{"instruction": f"i{n}", "output": "o"} for n in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1000)
    assert parsed(tmp_path / "a.parquet") == list(enumerate(rows, 1))
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as parquet after row 0"):
        parsed(tmp_path / "a.parquet")


def test_keys_that_parquet_fills_up_with_nulls_are_taken_away_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    calls = [[{"name": "f", "arguments": arguments}] for arguments in ({"x": 1}, {"y": [{"z": None}]})]
    rows = [{"messages": [{"role": "assistant", "tool_calls": one}, {"role": "user"}]} for one in calls]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [value["messages"] for _, value in parsed(tmp_path / "a.parquet")]
    assert [messages[0]["tool_calls"][0]["arguments"] for messages in found] == [{"x": 1}, {"y": [{}]}]
    assert found[0][1] == {"role": "user"}
    assert "messages.tool_calls.arguments are structures" in caplog.text


@pytest.mark.parametrize("content", [b'{"a": 1}\n\n{"a": 2}\n', b'[{"a": 1},\n\n {"a": 2}]'])
def test_packed_files_are_read_as_what_is_in_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(content))
    (tmp_path / "a.json").write_bytes(content)
    assert parsed(tmp_path / "a.json.gz") == parsed(tmp_path / "a.json")
    assert [place for place, _ in parsed(tmp_path / "a.json.gz")] == [1, 3]


def test_progress_through_a_packed_file_is_counted_in_its_own_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000))
    ends = [record.end_bytes for record in read_records(tmp_path / "a.jsonl.gz")]
    assert ends == sorted(ends)
    assert ends[-1] == (tmp_path / "a.jsonl.gz").stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b'{"a": 1}\n' * 999)[:-9], r"cannot read .*a\.jsonl\.gz: Compressed file ended before"),
        (b'{"a": 1}', r"cannot read .*a\.jsonl\.gz: Not a gzipped file"),
        (gzip.compress(b"")[:10] + b"\xff" * 20, r"cannot read .*a\.jsonl\.gz: Error -3"),
    ],
    ids=["cut", "not packed", "garbage"],  # packed bytes hold the time, so they are no name for a test
)
def test_a_packed_file_that_is_damaged_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        parsed(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.JSONL", ".jsonl"), ("a.json.gz", ".json"), ("a.b.txt.GZ", ".txt"), ("a.gz", ".gz"), ("a.csv.gz", ".gz"),
     ("a.parquet.gz", ".gz"), ("a/b.parquet", ".parquet"), ("a", "")],
)  # fmt: skip
def test_a_name_tells_what_is_inside(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_one_column_of_parquet_is_read_alone_and_must_be_there(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    rows = [{"text": "t", "id": 3}, {"text": None, "id": 4}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [record.raw for record in read_records(tmp_path / "a.parquet", "text")] == [{"text": "t"}, {}]
    with pytest.raises(DataError, match=r"a\.parquet has no column 'body'; it has text, id: choose with --key"):
        list(read_records(tmp_path / "a.parquet", "body"))
    with pytest.raises(DataError, match=r"column 'id' of a\.parquet is int64, not text; of text it has text: choose"):
        list(read_records(tmp_path / "a.parquet", "id"))


def test_columns_of_text_are_known_in_all_their_encodings(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    plain = pyarrow.array(["t", None])
    columns = {"plain": plain, "large": plain.cast(pyarrow.large_string()), "few": plain.dictionary_encode()}
    parquet.write_table(pyarrow.table({**columns, "none": pyarrow.nulls(2)}), tmp_path / "a.parquet")
    for name in columns:
        assert [record.raw for record in read_records(tmp_path / "a.parquet", name)] == [{name: "t"}, {}]
    assert [record.raw for record in read_records(tmp_path / "a.parquet", "none")] == [{}, {}]
