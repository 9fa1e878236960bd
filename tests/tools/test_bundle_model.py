"""What replaces the model in the package: only a whole export of a good run, and nothing is lost otherwise."""

import importlib.util
import json
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("bundle_model", Path(__file__).parents[2] / "tools" / "bundle_model.py")
assert SPEC is not None
assert SPEC.loader is not None
bundle_model = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bundle_model)

FILES = ("config.json", "tokenizer.json", "generation_config.json", "model-00001-of-00001.safetensors")
REPORT = {
    "command": "ling demo", "when": "now", "machine": {}, "versions": {}, "recipe": {"train": {"seed": 5}},
    "training": {"steps": 1, "tokens": 2, "seconds": 3.0, "snapshots": 4}, "gated_percent": 99.0, "tasks": [],
    "bits_per_byte": {"bfloat16": 2.0, "byte_ngram_3": 2.5}, "speculation": {"acceptance_percent": 60.0},
}  # fmt: skip


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package directory that holds an older model."""
    directory = tmp_path / "bundled"
    directory.mkdir()
    for name in ("__init__.py", "old.json", "old.safetensors"):
        (directory / name).write_text("old", encoding="utf-8")
    monkeypatch.setattr(bundle_model, "BUNDLED", directory)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run."""
    export = tmp_path / "run/export/bfloat16"
    export.mkdir(parents=True)
    for name in FILES:
        (export / name).write_text("new", encoding="utf-8")
    write_report(tmp_path / "run", REPORT)
    return tmp_path / "run"


def write_report(run: Path, report: dict) -> None:
    (run / "report.json").write_text(json.dumps(report), encoding="utf-8")


def test_the_new_model_takes_the_place_of_the_old(run: Path, bundled: Path) -> None:
    bundle_model.main([str(run), "--commit", "abc"])
    assert sorted(p.name for p in bundled.iterdir()) == sorted(["PROVENANCE.json", "__init__.py", *FILES])
    provenance = json.loads((bundled / "PROVENANCE.json").read_text(encoding="utf-8"))
    assert (provenance["commit"], provenance["seed"]) == ("abc", 5)


def check_refused(run: Path, bundled: Path, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        bundle_model.main([str(run), "--commit", "abc"])
    assert exit.value.code == 2
    assert reason in capsys.readouterr().err
    assert sorted(p.name for p in bundled.iterdir()) == ["__init__.py", "old.json", "old.safetensors"]


@pytest.mark.parametrize("lost", FILES)
def test_an_export_that_lacks_a_file_is_refused(
    run: Path, bundled: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "export/bfloat16" / lost).unlink()
    name = "*.safetensors" if lost.endswith(".safetensors") else lost
    check_refused(run, bundled, f"is not a whole export: it has no {name}", capsys)


def test_what_is_no_finished_run_is_refused(run: Path, bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(run / "nowhere", bundled, "nowhere is not a finished run of ling demo", capsys)
    for file in (run / "export/bfloat16").iterdir():
        file.unlink()
    check_refused(run, bundled, "is not a whole export", capsys)


def test_a_weak_model_is_refused(run: Path, bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(run, REPORT | {"bits_per_byte": {"bfloat16": 2.6, "byte_ngram_3": 2.5}})
    check_refused(run, bundled, "worse than order-3 bytes", capsys)
