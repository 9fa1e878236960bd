"""`ling plot`: pictures of runs, and what is no run."""

import json
from pathlib import Path

import pytest


def run(directory: Path, loss: float, steps: int = 30) -> Path:
    directory.mkdir()
    lines = [
        {
            "step": i + 1, "loss": loss / (i + 1), "mtp_losses": [loss], "mtp_correct_percent": [i], "grad_norm": 1.0,
            "lr": 1e-3, "tokens": 100, "step_seconds": 0.1, "balance": None, "counts": {},
        }
        for i in range(steps)
    ]  # fmt: skip
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "evaluations.jsonl").write_text(json.dumps({"step": 20, "evaluation/bits_per_byte": 2.345}) + "\n")
    return directory


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype")])
def test_runs_are_drawn_beside_each_other(ling, tmp_path: Path, suffix: str, begins: bytes) -> None:
    result = ling("plot", run(tmp_path / "a", 5.0), run(tmp_path / "b<", 6.0, 1), "--out", tmp_path / f"c.{suffix}")
    assert result.code == 0, result.err
    drawn = (tmp_path / f"c.{suffix}").read_bytes()
    assert drawn.startswith(begins)
    if suffix == "html":
        assert b"2.345" in drawn
        assert b"b&lt;" in drawn


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("{tmp}", "{tmp} holds no numbers of a run (metrics.jsonl)"),
        ("{tmp}/a --out {tmp}/x.gif", "--out {tmp}/x.gif must end in .png, .svg, .pdf, .html"),
        ("{tmp}/a --out {tmp}/none/x.png", "{tmp}/none is no directory"),
    ],
)
def test_a_mistake_is_one_line(ling, tmp_path: Path, arguments: str, line: str) -> None:
    run(tmp_path / "a", 1.0)
    result = ling("plot", *arguments.format(tmp=tmp_path).split())
    assert result.code == 2
    assert line.format(tmp=tmp_path) in result.err.splitlines()[-1]
