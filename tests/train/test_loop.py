"""The loop: it learns, it resumes to the bit, and an interruption loses nothing."""

import json
import random
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ling.checkpoint.dcp import DcpSource
from ling.config.recipe import Recipe, load_recipe
from ling.errors import CheckpointError, TrainingError
from ling.train.averaging import SnapshotMean, is_snapshot_step
from ling.train.batch import TrainBatch, build_batch
from ling.train.files import latest_checkpoint, list_checkpoints
from ling.train.loop import Training

OVERRIDES = [
    "train.steps=12", "train.tokens_per_step=256", "train.checkpoint_every=5", "train.average_last=2",
    "train.average_every=3", "optim.lr=3e-3", "optim.warmup_steps=2", "optim.expert_bias_update_rate=0.01",
]  # fmt: skip


def recipe(*more: str) -> Recipe:
    return load_recipe(preset_name="tiny", overrides=[*OVERRIDES, *more])


def read_batches(step: int) -> list[TrainBatch]:
    """Counting upwards from a random token: learnable in a few steps."""
    draw = random.Random(step)
    documents = [[(start + i) % 100 + 10 for i in range(24)] for start in draw.sample(range(100), 8)]
    return [build_batch(documents, [[True] * 24] * 8, 1)]


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.state.model.state_dict().items()}


def run(directory: Path, *more: str) -> tuple[Training, list[float]]:
    training = Training(recipe(*more), directory, read_batches)
    return training, [report.loss for report in training.run()]


def test_the_loss_falls(tmp_path: Path) -> None:
    _, losses = run(tmp_path, "train.steps=60")
    assert losses[0] > 4.5
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("stop_after", [1, 5, 8, 11])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    whole, losses = run(tmp_path / "whole")
    interrupted = Training(recipe(), tmp_path / "cut", read_batches)
    reports = interrupted.run()
    for _ in range(stop_after):
        next(reports)
    reports.close()
    resumed = Training(recipe(), tmp_path / "cut", read_batches)
    assert resumed.resume() == stop_after
    rest = [report.loss for report in resumed.run()]
    assert rest == losses[stop_after:]
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    def interrupting(step: int) -> list[TrainBatch]:
        if step == 7:
            signal.raise_signal(number)
        return read_batches(step)

    before = signal.getsignal(number)
    whole, losses = run(tmp_path / "whole")
    training = Training(recipe(), tmp_path / "cut", interrupting)
    with pytest.raises(KeyboardInterrupt):
        list(training.run())
    assert signal.getsignal(number) is before
    resumed = Training(recipe(), tmp_path / "cut", read_batches)
    assert resumed.resume() == 8
    assert [report.loss for report in resumed.run()] == losses[8:]
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

    def interrupting(step: int) -> list[TrainBatch]:
        if step == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return read_batches(step)

    try:
        with pytest.raises(KeyboardInterrupt):
            list(Training(recipe(), tmp_path, interrupting).run())
    finally:
        signal.signal(signal.SIGINT, before)
    assert Training(recipe(), tmp_path, read_batches).resume() == 5


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    training = Training(recipe(), tmp_path, read_batches)
    reports = training.run()
    for _ in range(8):
        next(reports)
    # The machine dies: no checkpoint since step 5, but lines up to step 8 are on disk.
    del reports
    for late in (tmp_path / "checkpoints").glob("step_000008"):
        late.rename(tmp_path / "lost")
    resumed = Training(recipe(), tmp_path, read_batches)
    assert resumed.resume() == 5
    list(resumed.run())
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_metrics_of_a_run_without_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st', encoding="utf-8")
    training = Training(recipe("train.steps=6"), tmp_path, read_batches)
    assert training.resume() == 0
    list(training.run())
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_lost_metrics_are_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, "train.steps=6")
    (tmp_path / "metrics.jsonl").unlink()
    assert Training(recipe("train.steps=6"), tmp_path, read_batches).resume() == 6
    assert "metrics.jsonl holds only 0 of the 6 steps done" in caplog.messages[-1]


@pytest.mark.parametrize("facts", [{}, {"step": "6"}, {"step": 6, "snapshots": 1.5}, {"step": 6, "snapshots": 2}])
def test_damaged_facts_name_their_file(tmp_path: Path, facts: dict) -> None:
    run(tmp_path, "train.steps=6")
    (tmp_path / "checkpoints/step_000006/training.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"step_000006/training\.json has (step|snapshots|seconds) = "):
        Training(recipe("train.steps=6"), tmp_path, read_batches).resume()


def test_a_run_that_diverges_stops_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    training = Training(recipe(), tmp_path, read_batches)
    reports = training.run()
    for _ in range(7):
        next(reports)
    with torch.no_grad():
        training.state.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="training diverges: at step 8 the loss is nan"):
        next(reports)
    assert [p.name for p in list_checkpoints(training.checkpoints)] == ["step_000005"]


def test_a_dense_model_trains(tmp_path: Path) -> None:
    def read_dense_batch(step: int) -> list[TrainBatch]:
        return [build_batch([list(range(20, 40))], [[True] * 20], 0)]

    dense = recipe("model.first_k_dense_replace=3", "model.num_nextn_predict_layers=0", "train.steps=6")
    reports = list(Training(dense, tmp_path, read_dense_batch).run())
    assert [report.balance for report in reports] == [None] * 6
    assert reports[-1].loss < reports[0].loss


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000010", "step_000012"]
    assert latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints/step_000012"


def test_the_newest_checkpoints_stay_beyond_a_million_steps(tmp_path: Path) -> None:
    training = Training(recipe(), tmp_path, read_batches)
    for training.state.step in (999_999, 1_000_000, 1_000_001):
        training.save()
    assert [p.name for p in list_checkpoints(training.checkpoints)] == ["step_1000000", "step_1000001"]


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path: Path) -> None:
    went_on = threading.Event()
    waited: list[bool] = []

    def finish(directory: Path) -> None:
        if directory.name.startswith(".step_000005"):
            waited.append(went_on.wait(timeout=60))

    training = Training(recipe("train.average_last=0"), tmp_path, read_batches, finish)
    for report in training.run():
        if report.step == 7:
            assert list_checkpoints(training.checkpoints) == []
            went_on.set()
    assert waited == [True]
    assert [p.name for p in list_checkpoints(training.checkpoints)] == ["step_000010", "step_000012"]
    plain = Training(recipe("run.save_in_background=false", "run.keep_checkpoints=3"), tmp_path / "plain", read_batches)
    list(plain.run())
    for name in ("step_000010", "step_000012"):
        mine, other = (DcpSource(t.checkpoints / name) for t in (training, plain))
        assert mine.facts()["step"] == other.facts()["step"]
        for tensor in mine.tensors:
            assert torch.equal(mine.read(tensor), other.read(tensor)), (name, tensor)


def test_what_stops_a_checkpoint_in_the_background_stops_the_run_and_leaves_the_one_before(tmp_path: Path) -> None:
    def finish(directory: Path) -> None:
        if directory.name.startswith(".step_000010"):
            raise OSError(28, "No space left on device")

    training = Training(recipe("train.checkpoint_every=5"), tmp_path, read_batches, finish)
    with pytest.raises(CheckpointError, match="step_000010: No space left on device; nothing was left there"):
        list(training.run())
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000005"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match="the checkpoint is of another model"):
        Training(recipe("model.hidden_size=32"), tmp_path, read_batches).resume()


def test_a_time_limit_ends_the_run_with_everything_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training, losses = run(tmp_path, "train.max_minutes=1e-9")
    assert len(losses) == 1
    assert latest_checkpoint(training.checkpoints) == training.checkpoints / "step_000001"
    assert "ended the run before the first snapshot" in caplog.messages[-1]


def test_the_time_of_checkpoints_counts_also_after_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("ling.train.stopwatch.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def write(directory: Path) -> None:
        now[0] += 35

    limited = recipe("train.max_minutes=1", "train.checkpoint_every=1", "run.save_in_background=false")
    training = Training(limited, tmp_path, read_batches, finish=write)
    assert len(list(training.run())) == 2
    assert training.seconds == 70
    resumed = Training(limited, tmp_path, read_batches)
    assert resumed.resume() == 2
    assert resumed.seconds == 35  # the last one's own time is not in it


def test_the_last_snapshots_are_averaged(tmp_path: Path) -> None:
    assert [s for s in range(1, 13) if is_snapshot_step(s, recipe().train)] == [9, 12]
    taken: list[dict[str, torch.Tensor]] = []
    training = Training(recipe(), tmp_path, read_batches)
    for report in training.run():
        if report.step in (9, 12):
            taken.append(weights(training))
    for name, value in weights(training).items():
        torch.testing.assert_close(value, (taken[0][name] + taken[1][name]) / 2)


def test_a_run_that_time_ends_is_averaged_too() -> None:
    train = recipe("train.steps=1000", "train.average_last=4", "train.average_every=50", "train.max_minutes=10").train
    assert not is_snapshot_step(400, train, seconds=470)
    assert is_snapshot_step(400, train, seconds=481)
    assert not is_snapshot_step(401, train, seconds=481)
    assert not is_snapshot_step(800, train, seconds=300)
    assert is_snapshot_step(850, train, seconds=300)


def test_a_mean_of_no_snapshots_changes_nothing() -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    SnapshotMean().copy_to(model)
    assert torch.equal(model.weight, before)
