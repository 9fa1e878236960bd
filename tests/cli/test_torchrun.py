"""`ling train` on several processes, as torchrun starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = [
    "pretrain_tiny_cpu", "model.num_hidden_layers=3", "train.steps=8", "train.checkpoint_every=2",
    "train.average_last=2", "train.average_every=2", "optim.warmup_steps=2", "run.evaluate_every=4",
    "run.evaluate_prompts=1", "run.evaluate_tokens=256", "run.keep_every=0",
]  # fmt: skip


def start(ranks: int, *arguments: str) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"]
    command = [sys.executable, *(torchrun if ranks > 1 else []), "-m", "ling", "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    return out, err


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_ranks_train_as_one_process_and_leave_one_export(tmp_path: Path) -> None:
    finish(start(1, *RECIPE, "--out", str(tmp_path / "one")))
    out, err = finish(start(2, *RECIPE, "parallel.expert=2", "--out", str(tmp_path / "two")))
    assert out.split() == [str(tmp_path / "two/export")]
    assert err.count("step 8: held out") == 1
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in two] == list(range(1, 9))
    for mine, other in zip(two, one):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert mine["tokens"] == other["tokens"]
    assert list((tmp_path / "two/export").glob("*.safetensors"))


@pytest.mark.slow
def test_stages_train_as_one_process_does_measure_export_and_are_profiled(tmp_path: Path) -> None:
    plain = [*RECIPE, "run.evaluate_prompts=0", "run.export_every=4"]
    finish(start(1, *plain, "--out", str(tmp_path / "one")))
    finish(start(2, *plain, "parallel.pipeline=2", "run.profile_from=2", "--out", str(tmp_path / "two")))
    for mine, other in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert mine["counts"].keys() == other["counts"].keys()
    bits = [
        [json.loads(line)["evaluation/bits_per_byte"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
        for run in (tmp_path / "two", tmp_path / "one")
    ]
    assert bits[0] == pytest.approx(bits[1], rel=1e-4)
    assert {path.name for path in (tmp_path / "two/exports").iterdir()} == {"step_000004", "step_000008"}
    traces = {path.name for path in (tmp_path / "two/profile").iterdir()}
    assert traces == {"steps_2_to_4.json.gz", "steps_2_to_4_rank_1.json.gz"}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_bfloat16_trains_on_one_process_and_on_two_and_goes_on_to_the_same_bits(tmp_path: Path, ranks: int) -> None:
    low = [*RECIPE, "train.precision=bfloat16"]
    finish(start(ranks, *low, "--out", str(tmp_path / "whole")))
    process = start(ranks, *low, "train.steps=8", "train.checkpoint_every=1", "--out", str(tmp_path / "cut"))
    while not list((tmp_path / "cut/checkpoints").glob("step_*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    finish(start(ranks, RECIPE[0], "--resume", "--out", str(tmp_path / "cut")))
    losses = [[line["loss"] for line in lines(tmp_path / run)] for run in ("whole", "cut")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_ranks_that_are_told_to_stop_leave_a_checkpoint_and_one_process_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(2, *RECIPE, "train.steps=400", "train.checkpoint_every=200", "--out", str(run))
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)  # torchrun hands it to its processes
    _, err = process.communicate(timeout=120)
    assert err.count("stopped; continue after step") == 1, err
    (kept,) = (run / "checkpoints").iterdir()
    done = int(kept.name.split("_")[1])
    assert 0 < done < 200
    going_on = start(1, *RECIPE[:1], "--resume", "parallel.expert=1", "run.evaluate_every=0", "--out", str(run))
    while len(lines(run)) < done + 2:
        time.sleep(0.2)
        assert going_on.poll() is None, going_on.communicate()
    going_on.send_signal(signal.SIGTERM)
    finish(going_on)
    assert [line["step"] for line in lines(run)][: done + 2] == list(range(1, done + 3))
