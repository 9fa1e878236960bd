"""Targets that appear whole or not at all, one writer at a time, whatever a killed writer left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ling.checkpoint.atomic import atomic_directory, atomic_file
from ling.errors import CheckpointError

WRITE_AND_HANG = """
import sys, time
from pathlib import Path
from ling.checkpoint.atomic import atomic_directory
with atomic_directory(Path(sys.argv[1]), resume=sys.argv[2] or None) as partial:
    (partial / "half").write_text("of it")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hanging(tmp_path: Path):
    """Start another process that is in the middle of writing `target`."""
    started: list[subprocess.Popen[str]] = []

    def start(target: Path, resume: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITE_AND_HANG, str(target), resume]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "writing\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_second_writer_is_refused_and_the_first_one_undisturbed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for first, second in ((None, None), ("abc", "abc"), ("abc", "def"), (None, "abc")):
        with atomic_directory(target, overwrite=True, resume=first) as partial:
            (partial / "a").write_text("first")
            with (
                pytest.raises(CheckpointError, match="out is being written by another run"),
                atomic_directory(target, overwrite=True, resume=second),
            ):
                pass
        assert (target / "a").read_text() == "first"
        assert names(tmp_path) == ["out"]


def test_two_writers_of_one_file_are_refused_too(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out") as partial:
        partial.write_text("first")
        with pytest.raises(CheckpointError, match="being written by another run"), atomic_file(tmp_path / "out"):
            pass
    assert (tmp_path / "out").read_text() == "first"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("resume", ["", "abc"])
def test_what_a_killed_writer_left_is_cleared_away(hanging, resume: str, tmp_path: Path) -> None:
    target = tmp_path / "out[1]"
    process = hanging(target, resume)
    with pytest.raises(CheckpointError, match="another run"), atomic_directory(target):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(names(tmp_path)) == 2, "a partial directory and a lock that nobody holds"
    with atomic_directory(target) as partial:
        assert names(partial) == []
    assert names(tmp_path) == ["out[1]"]


def test_a_killed_writer_that_can_go_on_does(hanging, tmp_path: Path) -> None:
    process = hanging(tmp_path / "out", "abc")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with atomic_directory(tmp_path / "out", resume="abc") as partial:
        assert names(partial) == ["half"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["between the renames", "before the old one is removed"])
def test_a_replacement_that_was_cut_short_loses_nothing(moment: str, tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old/content").write_text("old")
    if moment == "before the old one is removed":
        (tmp_path / "out").mkdir()
        (tmp_path / "out/content").write_text("new")
    with pytest.raises(CheckpointError, match="exists already"), atomic_directory(tmp_path / "out"):
        pass
    found = next(path for path in tmp_path.glob("*/content") if not path.parent.name.endswith(".old"))
    assert found.read_text() == ("old" if moment == "between the renames" else "new")
    with atomic_directory(tmp_path / "out", overwrite=True) as partial:
        (partial / "content").write_text("newest")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out/content").read_text() == "newest"


def test_a_target_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def write_directory() -> None:
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "a").write_text("ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out/thesis.txt").write_text("theirs")

    def write_file() -> None:
        with atomic_file(tmp_path / "file") as partial:
            partial.write_text("ours")
            (tmp_path / "file").write_text("theirs")

    for write in (write_directory, write_file):
        with pytest.raises(CheckpointError, match="exists already"):
            write()
    assert (tmp_path / "out/thesis.txt").read_text() == "theirs"
    assert (tmp_path / "file").read_text() == "theirs"
    assert names(tmp_path) == ["file", "out"]


def test_a_mount_point_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    with pytest.raises(CheckpointError, match="volume is a mount point"), atomic_directory(tmp_path / "volume"):
        raise AssertionError("nothing is to be written")
    with atomic_directory(tmp_path / "volume/out"):
        pass
    assert names(tmp_path) == ["volume"]
