"""Runs that are kept: not run again, not mixed with those of other settings, not lost half written."""

from pathlib import Path

import pytest
from benchmarks.kept_runs import read_kept, run_all, write_kept

from ling.errors import DataError

SETTINGS = {"steps": 3, "recipe": ("a=1", "b=2")}


def fail(*_: object) -> dict[str, int]:
    raise AssertionError("it was there already")


def add(a: int, b: int) -> dict[str, int]:
    return {"sum": a + b}


def test_what_is_in_the_file_is_not_run_again_and_comes_in_the_order_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "new" / "runs.json"
    runs = {"one": {"sum": 1}, "two": {"sum": 2}, "unasked": {"sum": 3}}
    write_kept(file, SETTINGS, runs)
    found = run_all({"two": (2,), "one": (1,)}, fail, file, SETTINGS, workers=1)
    assert list(found.items()) == [("two", {"sum": 2}), ("one", {"sum": 1})]
    assert read_kept(file, SETTINGS) == runs
    assert [path.name for path in file.parent.iterdir()] == ["runs.json"]


def test_runs_of_other_settings_and_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    write_kept(file, {"steps": 4}, {})
    with pytest.raises(DataError, match=r"has runs of other settings, \{'steps': 4\}, not .*; name another file"):
        read_kept(file, SETTINGS)
    for text in ("{", "[]", '{"runs": {}}'):
        file.write_text(text)
        with pytest.raises(DataError, match="does not hold runs of a benchmark; name another file"):
            read_kept(file, SETTINGS)


@pytest.mark.slow  # a process that imports torch
def test_what_is_missing_is_run_elsewhere_and_written_down(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    write_kept(file, SETTINGS, {"one": {"sum": 7}})
    found = run_all({"one": (1, 1), "two": (1, 2)}, add, file, SETTINGS, workers=1)
    assert found == read_kept(file, SETTINGS) == {"one": {"sum": 7}, "two": {"sum": 3}}
