"""The demo from end to end, a few steps long: interrupted, continued, converted, measured, reported."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ling.checkpoint import load_model
from ling.checkpoint.dcp import DcpSource
from ling.checkpoint.layout import MODEL_PREFIX
from ling.cli.demo.command import _resolve
from ling.errors import ConfigError
from ling.tokenizer import Tokenizer

SETTINGS = [
    "model.vocab_size=512", "model.pad_token_id=506", "model.eos_token_id=[506,509]", "train.steps=10",
    "train.tokens_per_step=512", "train.checkpoint_every=2", "train.average_every=2", "train.average_last=2",
]  # fmt: skip


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ling", "demo", "--out", str(out), *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A run that got Ctrl-C after its first checkpoint: its directory, exit code and stderr."""
    out = tmp_path_factory.mktemp("demo") / "run"
    process = start(out, "--seed", "3", *SETTINGS)
    deadline = time.monotonic() + 300
    while not list(out.glob("checkpoints/step_*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    return out, process.returncode, err


@pytest.fixture(scope="module")
def finished(interrupted: tuple[Path, int, str]) -> tuple[Path, str]:
    """The same run, continued to its end: its directory and stdout."""
    out, _, _ = interrupted
    process = start(out, "--resume")
    text, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, text


@pytest.fixture(scope="module")
def report(finished: tuple[Path, str]) -> dict:
    return json.loads((finished[0] / "report.json").read_text(encoding="utf-8"))


def test_ctrl_c_says_how_to_go_on(interrupted: tuple[Path, int, str]) -> None:
    out, code, err = interrupted
    assert code == 130, err
    assert "nothing is lost: continue with ling demo --resume" in " ".join(err.split())
    assert "Traceback" not in err
    assert not list(out.rglob("*.partial*"))


def test_an_interrupted_run_is_not_overwritten(interrupted: tuple[Path, int, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_bytes((interrupted[0] / "recipe.json").read_bytes())
    with pytest.raises(ConfigError, match="holds an interrupted run: continue it with ling demo --resume --out"):
        _resolve(run, None, [], resume=False, restart=False)
    with pytest.raises(ConfigError, match="--resume continues with the recipe the run began with"):
        _resolve(run, None, ["train.steps=3"], resume=True, restart=False)
    assert _resolve(run, None, [], resume=True, restart=False).train.seed == 3
    assert _resolve(run, None, [], resume=False, restart=True).train.seed == 0


def test_a_finished_run_is_set_aside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for seed in (1, 2, 3):
        _resolve(run, None, [f"train.seed={seed}"], resume=False, restart=False)
        (run / "report.json").touch()
    assert json.loads((tmp_path / "run.previous/recipe.json").read_text(encoding="utf-8"))["train"]["seed"] == 2
    assert json.loads((run / "recipe.json").read_text(encoding="utf-8"))["train"]["seed"] == 3


def test_every_step_was_done_once(finished: tuple[Path, str], report: dict) -> None:
    lines = (finished[0] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))
    assert report["training"]["steps"] == 10
    assert report["training"]["snapshots"] == 2
    assert report["training"]["tokens"] == sum(json.loads(line)["tokens"] for line in lines)


def test_the_exports_are_the_training_checkpoint(finished: tuple[Path, str]) -> None:
    final = DcpSource(finished[0] / "final")
    whole = load_model(finished[0] / "export/float32").state_dict()
    rounded = load_model(finished[0] / "export/bfloat16").state_dict()
    for name, value in whole.items():
        stored = final.read(MODEL_PREFIX + name)
        assert torch.equal(value, stored), name
        kept = name.endswith("expert_bias")
        assert torch.equal(rounded[name].float(), stored if kept else stored.bfloat16().float()), name
    assert load_model(finished[0] / "export/float8", fp8="keep").config.num_nextn_predict_layers == 1


def test_the_report_has_every_number_and_stands_alone(finished: tuple[Path, str], report: dict) -> None:
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    assert page.count("data:image/png;base64,") == 3
    for promise in report["promises"]:
        assert promise["measured"] in page
    for value in report["bits_per_byte"].values():
        assert f"{value:.4f}" in page
    assert [e["precision"] for e in report["exports"]] == ["float32", "bfloat16", "float8"]
    assert sum(t["total"] for t in report["tasks"] if t["task"] in ("identity", "greetings", "facts")) == 200
    assert report["recipe"]["train"]["seed"] == 3


def test_the_promises_compare_what_was_measured(report: dict) -> None:
    held = {p["what"]: p["held"] for p in report["promises"]}
    text = report["bits_per_byte"]
    assert held["held-out real text, bits per byte"] is (text["bfloat16"] < text["byte_ngram_2"])
    assert held["200 held-out prompts on what was taught"] is (report["gated_percent"] >= 90)
    assert held["200 held-out prompts on what was taught"] is False, "ten steps cannot teach this"
    assert held["same text with MTP drafting"] is True
    assert text["byte_ngram_3"] < text["byte_ngram_2"] < 8


def test_the_summary_is_on_stdout(finished: tuple[Path, str], report: dict) -> None:
    text = finished[1]
    assert f"report: {finished[0] / 'report.html'}" in text.replace("\n", "")
    assert f"{report['speculation']['speedup']:.2f}x the speed of plain decoding" in text


def test_the_export_talks(finished: tuple[Path, str], ling, monkeypatch: pytest.MonkeyPatch) -> None:
    export = finished[0] / "export/bfloat16"
    assert Tokenizer.from_directory(export).vocab_size == 512
    result = ling("generate", "Hello", "--model", export, "--max-tokens", "5")
    assert result.code == 0
    assert ling("generate", "Hello", "--model", export, "--max-tokens", "5", "--drafts", "0").out == result.out


def test_the_checkpoint_converts_from_the_command_line(finished: tuple[Path, str], ling, tmp_path: Path) -> None:
    out = finished[0]
    assert ling("convert", out / "final", tmp_path / "fp8", "--force-fp8").out.strip() == str(tmp_path / "fp8")
    weights = (tmp_path / "fp8/model-00001-of-00001.safetensors").read_bytes()
    assert weights == (out / "export/float8/model-00001-of-00001.safetensors").read_bytes()
    again = ling("convert", out / "final", tmp_path / "fp8")
    assert again.code == 2
    assert "exists already" in again.err
