"""What a run leaves on disk, read back: also after a million steps, and after a torn write."""

from pathlib import Path

import pytest

from ling.errors import CheckpointError
from ling.train.files import checkpoint_path, checkpoint_step, latest_checkpoint, list_checkpoints, read_metrics


def test_checkpoints_are_in_the_order_of_their_steps_beyond_a_million(tmp_path: Path) -> None:
    steps = [500, 999_500, 1_000_000, 1_000_500]
    for step in reversed(steps):
        checkpoint_path(tmp_path, step).mkdir()
    (tmp_path / "step_notes").touch()
    assert [checkpoint_step(p) for p in list_checkpoints(tmp_path)] == steps
    assert latest_checkpoint(tmp_path) == tmp_path / "step_1000500"
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo', encoding="utf-8")
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("damaged", ["{", "[]", '{"loss": 1.0}'])
def test_damage_before_the_last_line_names_the_line(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + damaged + '\n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl line 2 does not hold the numbers of a step"):
        read_metrics(path)
