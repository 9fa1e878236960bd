"""The demo from end to end, a few steps long: interrupted, continued, converted, measured, reported."""

import json
import re
import shutil
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
from ling.cli.demo import evaluate, pipeline
from ling.cli.demo.command import _print_summary, _resolve
from ling.cli.demo.directory import RunDirectory
from ling.cli.demo.prepare import prepare
from ling.cli.demo.report import write_report
from ling.config.recipe import Recipe, load_recipe
from ling.errors import CheckpointError, ConfigError
from ling.tokenizer import Tokenizer
from ling.train.files import read_metrics

SETTINGS = [
    "model.vocab_size=512", "model.pad_token_id=506", "model.eos_token_id=[506,509]", "train.steps=10",
    "train.tokens_per_step=512", "train.checkpoint_every=2", "train.average_every=2", "train.average_last=2",
    "data.heldout_percent=0.3",
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
    step = DcpSource(max(out.glob("checkpoints/step_*"))).facts()["step"]
    assert f"interrupted; continue after step {step} with ling demo --resume --out {out}" in err
    assert "Traceback" not in err
    assert not list(out.rglob("*.partial*"))


def resolve(run: Path, *overrides: str, resume: bool = False, restart: bool = False) -> Recipe:
    return _resolve(RunDirectory(run), None, list(overrides), resume=resume, restart=restart)


def begin(run: Path, seed: int) -> RunDirectory:
    """Begin a run, as far as its recipe."""
    directory = RunDirectory(run)
    directory.begin(_resolve(directory, None, [f"train.seed={seed}"], resume=False, restart=False))
    return directory


def stored_seed(run: Path) -> int:
    return json.loads((run / "recipe.json").read_text(encoding="utf-8"))["train"]["seed"]


def test_an_interrupted_run_is_not_overwritten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin(run, 3)
    (run / "checkpoints/step_000002").mkdir(parents=True)
    (run / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds an interrupted run: continue it with ling demo --resume --out"):
        resolve(run)
    for other in ({"restart": True}, {"overrides": ["train.steps=3"]}):
        with pytest.raises(ConfigError, match="--resume continues with the recipe the run began with"):
            resolve(run, *other.pop("overrides", []), resume=True, **other)
    assert resolve(run, resume=True).train.seed == 3
    RunDirectory(run).begin(resolve(run, restart=True))
    assert sorted(p.name for p in run.iterdir()) == ["notes.txt", "recipe.json"]
    assert stored_seed(run) == 0


def test_steps_without_a_checkpoint_are_an_interrupted_run_too(tmp_path: Path) -> None:
    run = begin(tmp_path, 1)
    run.metrics.write_text('{"step": 1}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="holds an interrupted run"):
        resolve(tmp_path)


def test_a_run_without_any_step_is_begun_anew(tmp_path: Path) -> None:
    run = begin(tmp_path, 1)
    run.tokenizer.mkdir()
    run.metrics.touch()
    (tmp_path / ".tokenizer.partial-1").mkdir()
    begin(tmp_path, 2)
    assert stored_seed(tmp_path) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.json"]


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="is not empty and not a run of ling demo"):
        resolve(tmp_path)


@pytest.mark.parametrize("here", [False, True])
def test_a_finished_run_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    run = tmp_path / "run"
    for seed in (1, 2, 3):
        run.mkdir(exist_ok=True)
        monkeypatch.chdir(run)
        begin(Path() if here else run, seed)
        (run / "report.json").touch()
    assert stored_seed(tmp_path / "run.previous") == 2
    assert stored_seed(run) == 3


def test_a_run_that_cannot_begin_leaves_the_finished_ones_in_place(tmp_path: Path, ling) -> None:
    for seed in (1, 2):
        begin(tmp_path / "run", seed).report.touch()
    for wrong, reason in (
        ("data.heldout_percent=0.0001", "holds out no document of the books; raise it"),
        ("model.vocab_size=200", "vocab_size"),
    ):
        result = ling("demo", "--out", tmp_path / "run", wrong)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert reason in result.err
    assert (stored_seed(tmp_path / "run.previous"), stored_seed(tmp_path / "run")) == (1, 2)
    assert (tmp_path / "run/report.json").exists()


def test_an_interruption_names_what_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "report.json").touch()
    (tmp_path / "recipe.json").touch()
    before = RunDirectory(tmp_path)
    assert before.how_to_go_on() == f"nothing had been written yet; start again with ling demo --out {tmp_path}"
    run = begin(tmp_path / "run", 1)
    again = f"ling demo --resume --out {tmp_path / 'run'}"
    assert run.how_to_go_on() == f"no checkpoint had been written yet; {again} starts from the beginning"
    for step in ("000500", "999999", "1000000"):
        (run.checkpoints / f"step_{step}").mkdir(parents=True)
    assert run.how_to_go_on() == f"continue after step 1000000 with {again}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {', "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "lacks data, model, optim, train"),
    ],
)
def test_a_damaged_recipe_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.json").write_text(text, encoding="utf-8")
    with pytest.raises((CheckpointError, ConfigError), match=f"recipe.json {message}"):
        resolve(tmp_path, resume=True)


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


def test_special_tokens_elsewhere_are_refused_with_the_right_ids(finished: tuple[Path, str]) -> None:
    for wrong in ("model.pad_token_id=505", "model.eos_token_id=[506,510]"):
        with pytest.raises(ConfigError, match=re.escape("model.pad_token_id=506 model.eos_token_id=[506,509]")):
            prepare(load_recipe(preset_name="demo", overrides=[*SETTINGS, wrong]), finished[0] / "tokenizer")


@pytest.fixture
def measured_in_short(monkeypatch: pytest.MonkeyPatch, report: dict) -> None:
    """A demo that answers few prompts and believes its earlier report."""
    monkeypatch.setattr(evaluate, "GATED_PROMPTS", {"identity": 1})
    monkeypatch.setattr(evaluate, "OTHER_PROMPTS", {})
    monkeypatch.setattr(evaluate, "_SPECULATION_PROMPTS", 1)
    monkeypatch.setattr(pipeline, "SAMPLE_PROMPTS", ("Hello",))
    monkeypatch.setattr(pipeline, "measure_text", lambda exported, prepared: report["bits_per_byte"])


@pytest.mark.usefixtures("measured_in_short")
def test_a_finished_run_resumes_to_the_same_bits(
    finished: tuple[Path, str], ling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished[0], run.path)
    prepared = prepare(run.read_recipe(), run.tokenizer)
    monkeypatch.setattr(pipeline, "prepare", lambda recipe, tokenizer: prepared)
    shutil.rmtree(run.final)
    result = ling("demo", "--resume", "--out", run.path)
    assert result.code == 0, result.err
    before, after = DcpSource(finished[0] / "final"), DcpSource(run.final)
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        assert torch.equal(before.read(name), after.read(name)), name
    assert read_metrics(run.metrics) == read_metrics(finished[0] / "metrics.jsonl")
    run.metrics.unlink()
    result = ling("demo", "--resume", "--out", run.path)
    assert result.code == 2
    assert "metrics.jsonl holds no steps of a run that has done them all" in result.err


def test_the_report_of_a_dense_model_leaves_out_experts_and_drafting(
    finished: tuple[Path, str], report: dict, tmp_path: Path
) -> None:
    history = [
        {**line, "counts": {}, "balance": None, "mtp_losses": []}
        for line in read_metrics(finished[0] / "metrics.jsonl")
    ]
    dense = {**report, "speculation": None}
    write_report(RunDirectory(tmp_path), dense, history)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert "This model has no MTP layer" in page
    assert "Expert load" not in page
    assert "same text with MTP drafting" not in {p["what"] for p in pipeline._promises(dense)}


def test_what_a_model_says_is_no_markup(report: dict, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"prompt": "[i]Who?", "answer": "[/b] [red] :smile: me"}
    _print_summary({**report, "samples": [said], "speculation": None}, Path("runs/[x]/report.html"))
    out = capsys.readouterr().out
    assert "[i]Who?  [/b] [red] :smile: me" in out
    assert "report: runs/[x]/report.html" in out
    assert "this model has no MTP layer" in out
