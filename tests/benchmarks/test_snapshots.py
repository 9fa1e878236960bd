"""A training that is killed goes on from its snapshot with the same bits."""

from pathlib import Path

import pytest
import torch
from benchmarks.snapshots import read_snapshot, write_snapshot

from ling.config.recipe import load_recipe
from ling.errors import DataError
from ling.model import CausalLM, init_weights
from ling.train.batch import build_batch
from ling.train.state import TrainState
from ling.train.step import train_step

RECIPE = load_recipe(
    preset_name="tiny",
    overrides=[
        "optim.lr=0.01", "optim.warmup_steps=0", "train.precision=bfloat16", "optim.weights=bfloat16",
        "optim.moments=fp8",
    ],
)  # fmt: skip
SETTINGS = {"steps": 4}


def start(seed: int) -> TrainState:
    model = init_weights(CausalLM(RECIPE.model), torch.Generator().manual_seed(seed))
    model.bfloat16()
    return TrainState(model, RECIPE.optim)


def advance(state: TrainState, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(10, 90, (16,), generator=torch.Generator().manual_seed(step)).tolist()
        batch = build_batch([tokens], [[True] * 16], RECIPE.model.num_nextn_predict_layers)
        train_step(state.model, state.optimizer, [batch], RECIPE, step, guard=state.guard)


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "new" / "run.pt"
    whole = start(0)
    assert read_snapshot(file, whole, SETTINGS) is None
    advance(whole, range(2))
    write_snapshot(file, whole, {"losses": [1.5, 1.25], "lost": None}, SETTINGS)
    advance(whole, range(2, 4))
    resumed = start(1)
    assert read_snapshot(file, resumed, SETTINGS) == {"losses": [1.5, 1.25], "lost": None}
    assert resumed.optimizer.updates == 2
    advance(resumed, range(2, 4))
    assert resumed.guard.state() == whole.guard.state()
    theirs = resumed.tensors()
    different = [name for name, value in whole.tensors().items() if not torch.equal(value, theirs[name])]
    assert not different, different
    assert [path.name for path in file.parent.iterdir()] == ["run.pt"]


def test_a_snapshot_of_other_settings_is_refused(tmp_path: Path) -> None:
    state = start(0)
    write_snapshot(tmp_path / "run.pt", state, {}, {"steps": 5})
    with pytest.raises(DataError, match="is of a run with other settings; remove it, or name another directory"):
        read_snapshot(tmp_path / "run.pt", state, SETTINGS)
