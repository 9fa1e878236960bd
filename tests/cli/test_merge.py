"""`ling merge` from the command line."""

from pathlib import Path

import pytest

from ling.checkpoint import save_model
from ling.testing.models import tiny_model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("merge")
    for seed, name in enumerate("abc"):
        save_model(tiny_model(seed=seed), base / name)
    return [base / name for name in "abc"]


def test_the_command_prints_the_weights_and_the_target(ling, checkpoints: list[Path], tmp_path: Path) -> None:
    done = ling("merge", *checkpoints, "--out", tmp_path / "out", "--weights", "1,1,2", "--verify")
    assert done.code == 0, done.err
    assert done.out.strip() == str(tmp_path / "out")
    assert "0.5000" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{b}", "--out", "{tmp}/out"], "merging takes two checkpoints at least"),
        (["{b}", "{b}", "--out", "{tmp}/out", "--decay", "sqrt"], "decay sqrt is not known; use mean, linear"),
        (["{b}", "{b}", "--out", "{tmp}/out", "--weights", "1,x"], "--weights 1,x must be numbers"),
        (["{b}", "{b}", "--out", "{tmp}/out", "--weights", "1"], "1 weights for 2 checkpoints"),
        (["{b}", "{b}", "--out", "{tmp}/out", "--weights", "1,1", "--decay", "mean"], "exclude each other"),
        (["{b}", "{b}", "--out", "{b}"], "must lie apart"),
    ],
)
def test_a_mistake_is_one_line(
    ling, checkpoints: list[Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = ling("merge", *(a.format(b=checkpoints[1], tmp=tmp_path) for a in arguments))
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_differ_in_mtp_layers_merge_without_them(
    ling, checkpoints: list[Path], tmp_path: Path
) -> None:
    save_model(tiny_model(seed=5, num_nextn_predict_layers=0), tmp_path / "bare")
    command = ("merge", checkpoints[0], tmp_path / "bare", "--out", tmp_path / "out")
    refused = ling(*command)
    assert refused.code == 2
    assert "num_nextn_predict_layers 1 and 0" in refused.err
    assert ling(*command, "--mtp", "drop", "--verify").code == 0


def test_a_merge_verifies_with_its_mtp_layers_apart(ling, checkpoints: list[Path], tmp_path: Path) -> None:
    done = ling("merge", *checkpoints, "--out", tmp_path / "out", "--mtp", "separate", "--verify")
    assert done.code == 0, done.err
    assert done.out.split() == [f"{tmp_path}/out-mtp", f"{tmp_path}/out"]
