"""`ling train` from the command line: it learns, stops, goes on to the same bits, and leaves what it says."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ling.checkpoint import load_model
from ling.engine.bundled import bundled_directory

SMALL = [
    f"run.start_from={bundled_directory()}", "run.threads=1", "run.evaluate_every=0", "train.steps=9",
    "train.tokens_per_step=256", "train.checkpoint_every=3", "train.average_last=0", "optim.warmup_steps=0",
    "optim.lr=1e-4", "run.profile_from=2", "run.profile_steps=1", "run.export_every=4", "data.heldout_percent=49",
]  # fmt: skip


def lines(directory: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Return the numbers of a run without its times."""
    read = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if "seconds" not in key and key != "mfu_percent"} for line in read
    ]


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ling", "train", "pretrain_tiny_cpu", "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("train") / "whole"
    process = start(out, *SMALL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return out


def test_a_run_leaves_its_numbers_checkpoints_and_the_model(whole: Path) -> None:
    assert [line["step"] for line in lines(whole)] == list(range(1, 10))
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step_000006", "step_000009"]
    model = load_model(whole / "export", dtype=torch.float32)
    was = load_model(bundled_directory(), dtype=torch.float32)
    assert not torch.equal(model.lm_head.weight, was.lm_head.weight)
    trace = json.loads(gzip.decompress((whole / "profile/steps_2_to_2.json.gz").read_bytes()))
    assert any("grouped_mm" in event.get("name", "") for event in trace["traceEvents"])
    assert sorted(p.name for p in (whole / "exports").iterdir()) == ["step_000004", "step_000008"]
    assert lines(whole)[0]["loss"] < 3, "it began with the weights of the checkpoint"


def wait_for(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not list((out / "checkpoints").glob(f"step_{step:06d}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_run_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "cut", *SMALL)
    wait_for(tmp_path / "cut", 3, process)
    process.kill()
    process.communicate()
    resumed = start(tmp_path / "cut", "--resume")
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert lines(tmp_path / "cut") == lines(whole)
    ours, theirs = (load_model(d / "export").state_dict() for d in (tmp_path / "cut", whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path / "cut", *SMALL, "train.steps=500")
    wait_for(tmp_path / "cut", 3, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    done = lines(tmp_path / "cut")[-1]["step"]
    assert f"stopped; continue after step {done} with ling train pretrain_tiny_cpu --resume" in err
    assert (tmp_path / "cut/checkpoints" / f"step_{done:06d}").is_dir()


def fine_tune(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ling", "finetune", "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A fine-tuning that nothing disturbed, and its settings."""
    directory = tmp_path_factory.mktemp("tuned")
    data = directory / "chats.jsonl"
    chats = [
        [
            {"role": "user", "content": f"Which colour has door {n}?"},
            {"role": "assistant", "content": f"Door {n} is red."},
        ]
        for n in range(60)
    ]
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
    settings = [
        "sft_tiny_cpu", str(data), "train.global_batch_size=2", "train.micro_batch_size=1", "finetune.epochs=4",
        "train.checkpoint_every=4", "run.evaluate_every=4", "run.evaluate_prompts=0", "finetune.heldout_percent=5",
        "optim.lr=1e-3", "optim.warmup_steps=0",
    ]  # fmt: skip
    process = fine_tune(directory / "whole", *settings)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return directory / "whole", settings


def test_fine_tuning_learns_answers(tuned: tuple[Path, list[str]]) -> None:
    whole, _ = tuned
    assert lines(whole)[-1]["loss"] < 0.2 * lines(whole)[0]["loss"]
    held = [line["evaluation/loss"] for line in lines(whole, "evaluations.jsonl")]
    assert held[-1] < 0.7 * held[0]


@pytest.mark.slow
def test_a_killed_fine_tuning_goes_on_to_the_same_bits(tuned: tuple[Path, list[str]], tmp_path: Path) -> None:
    (whole, settings), cut = tuned, tmp_path / "cut"
    process = fine_tune(cut, *settings)
    wait_for(cut, 4, process)
    process.kill()
    process.communicate()
    resumed = fine_tune(cut, "--resume")
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert lines(cut) == lines(whole)
    assert lines(cut, "evaluations.jsonl") == lines(whole, "evaluations.jsonl")


def test_a_dry_run_says_what_would_be_done_and_does_nothing(ling, tmp_path: Path) -> None:
    result = ling("train", "pretrain_tiny_cpu", "--out", tmp_path / "run", "--dry-run", "optim.lr=5e-4")
    assert result.code == 0, result.err
    assert "parameters:  3,692,608" in result.out
    assert "optim.lr: 0.0005" in result.out
    assert "layout:      one process" in result.out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_lists_ranks_and_fetches_nothing(ling) -> None:
    result = ling("train", "cpt_mini_4k", "--dry-run", "data.files=[x]", "parallel.data_parallel_shard=8")
    assert result.code == 0, result.err
    assert "begins with: the weights of inclusionAI/Ling-mini-base-2.0-20T" in result.out
    assert "layout:      shard 8, expert 8, recompute selective" in result.out
    assert "rank 7: data 7 of 8, experts 224 to 255; 1/8 of the other weights" in result.out
    wrong = ling("train", "cpt_mini_4k", "--dry-run", "parallel.data_parallel_shard=8", "parallel.expert=3")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "use one of 1, 2, 4, 8" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("no_such_recipe", "those in the package: bundled, "),
        ("pretrain_tiny_cpu run.track=[tensorbored]", "run.track tensorbored is not known; use tensorboard"),
        ("pretrain_tiny_cpu run.start_from=/nowhere/at/all", "/nowhere/at/all does not exist"),
        ("pretrain_tiny_cpu run.start_from={model} model.hidden_size=64", "has hidden_size 128, the recipe 64"),
        ("pretrain_tiny_cpu run.device=cuda", "run.device=cuda, but torch finds no GPU here; use run.device=cpu"),
        ("pretrain_tiny_cpu --resume", "there is no run to resume in"),
        ("pretrain_tiny_cpu --resume optim.lr=1", "leave out optim.lr=1"),
    ],
)
def test_a_mistake_is_one_line(ling, tmp_path: Path, arguments: str, line: str) -> None:
    result = ling("train", *arguments.format(model=bundled_directory()).split(), "--out", tmp_path / "run")
    assert result.code == 2, result.err
    assert line in result.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
