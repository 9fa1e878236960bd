"""Threads are as many as the cores that may be used, and what was asked for stands."""

import os
from pathlib import Path

import pytest
import torch

from ling.engine.threads import num_memory_nodes, set_threads, usable_cores
from ling.errors import ConfigError


@pytest.fixture(autouse=True)
def _as_before() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def machine(tmp_path: Path, siblings: list[str], quotas: dict[str, str]) -> tuple[Path, Path, Path]:
    for cpu, told in enumerate(siblings):
        place = tmp_path / f"cpu/cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(told + "\n")
    for group, quota in quotas.items():
        (tmp_path / "cgroup" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / group / "cpu.max").write_text(quota + "\n")
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/a/b\n")
    return tmp_path / "cpu", tmp_path / "cgroup", tmp_path / "own"


@pytest.mark.parametrize(
    ("siblings", "quotas", "count", "why"),
    [
        (["0", "1", "2", "3"], {}, 4, "one for each core"),
        (["0,2", "1,3", "0,2", "1,3"], {}, 2, "one for each core"),
        (["0", "1", "2", "3"], {"a/b": "max 100000", "a": "250000 100000"}, 2, "the container's share of 4 cores"),
        (["0", "1", "2", "3"], {"a/b": "50000 100000"}, 1, "the container's share of 4 cores"),
        (["0", "1"], {"a/b": "400000 100000"}, 2, "one for each core"),
    ],
)
def test_cores_are_counted_as_they_can_be_used(
    siblings: list[str], quotas: dict[str, str], count: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(len(siblings))))
    assert usable_cores(*machine(tmp_path, siblings, quotas)) == (count, why)


def test_a_machine_that_tells_nothing_counts_its_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5})
    assert usable_cores(tmp_path / "x", tmp_path / "y", tmp_path / "z") == (2, "one for each core")
    assert num_memory_nodes(tmp_path) == 1


def test_what_is_asked_for_stands_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert set_threads(2).startswith("threads: 2 (as asked)")
    assert torch.get_num_threads() == 2
    assert set_threads(None).startswith("threads: 2 (OMP_NUM_THREADS)")
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads(None)
    assert torch.get_num_threads() == usable_cores()[0]
    with pytest.raises(ConfigError, match="at least 1"):
        set_threads(0)
