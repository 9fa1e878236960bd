"""Memory that is free for the cache: what this machine can still give while the weights stay where they are."""

from pathlib import Path

import pytest

from ling.engine import memory


@pytest.mark.parametrize(
    ("status", "free_kib"),
    [
        ("VmLck:\t       0 kB\nRssFile:\t  600 kB\n", 400),  # mapped weights, which the system calls available
        ("VmLck:\t     600 kB\nRssFile:\t  600 kB\n", 1000),  # locked ones, which it does not
        ("Name:\tling\n", 1000),
        ("RssFile:\t  6000 kB\n", 0),
    ],
)
def test_mapped_weights_are_not_free(
    status: str, free_kib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    1000 kB\n")
    (tmp_path / "status").write_text(status)
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "status")
    assert memory.free_memory() == free_kib * 1024


def test_a_machine_that_says_nothing_gives_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "absent")
    assert memory.free_memory() > 2**28
