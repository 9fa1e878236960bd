"""`ling download`, and names of hubs where other commands take a checkpoint; nothing here uses the network."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from ling.engine.bundled import bundled_directory

COMMIT = "0" * 40
NAME = "owner/small"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def filled(cache: Path) -> Path:
    """The cache with the bundled model under a name, files without hashes."""
    repository = cache / "models--owner--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT, encoding="utf-8")
    return Path(shutil.copytree(bundled_directory(), repository / "snapshots" / COMMIT))


def test_every_command_takes_a_name(ling, filled: Path, tmp_path: Path) -> None:
    assert ling("download", NAME).out.strip() == str(filled)
    assert (
        ling("generate", "What is the capital of France?", "--model", NAME).out == "The capital of France is Paris.\n"
    )
    assert "0 errors" in ling("doctor", NAME).out
    assert ling("doctor", bundled_directory(), "--compare", NAME, "--num-prompts", 1, "--max-tokens", 4).code == 0
    assert ling("convert", NAME, tmp_path / "out", "--dry-run").code == 0
    assert ling("merge", NAME, NAME, "--out", tmp_path / "merged", "--dry-run").code == 0
    assert ling("export", NAME, tmp_path / "exported", "--for", "vllm").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("download", NAME), ("download", NAME, "--offline"), ("chat", NAME), ("generate", "hi", "--model", NAME),
        ("doctor", NAME), ("convert", NAME, "out"), ("doctor", bundled_directory(), "--compare", NAME),
        ("merge", NAME, bundled_directory(), "--out", "out"), ("export", NAME, "out", "--for", "vllm"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_in_the_cache_is_one_line_offline(ling, arguments: tuple[object, ...]) -> None:
    result = ling(*arguments)
    assert result.code == 2
    last = result.err.rstrip().splitlines()[-1]
    assert last.startswith(f"ling: {NAME} is neither a directory here nor in the hub's cache, and ")
    assert f"run ling download {NAME}" in last


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "give a model's name"),
        (("Ling-mini-2.0",), "did you mean inclusionAI/Ling-mini-2.0?"),
        ((NAME, "--from", "github"), "--from github is not known; use hf, modelscope"),
    ],
)
def test_mistakes_are_one_line(ling, arguments: tuple[str, ...], line: str) -> None:
    result = ling("download", *arguments)
    assert result.code == 2
    assert line in result.err


def test_verifying_without_hashes_says_so(ling, filled: Path) -> None:
    result = ling("download", NAME, "--verify")
    assert result.code == 2
    assert "nothing is known of the hashes" in result.err


def test_the_published_names_are_listed(ling) -> None:
    lines = ling("download", "--list").out.splitlines()
    assert len(lines) == 9
    assert lines[0].split()[0] == "inclusionAI/Ling-mini-2.0"
