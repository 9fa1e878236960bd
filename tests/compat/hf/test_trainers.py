"""transformers' Trainer, PEFT and TRL train our classes, in an environment of their own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.peers import peer_python

from ling.checkpoint import load_model
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.engine.bundled import bundled_directory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model") / "model"
    to_safetensors(open_pieces(bundled_directory()), target, ExportFormat(precision="float32"))
    return target


def run(what: str, directory: Path, work: Path) -> dict[str, Any]:
    answer = work / "answer.json"
    command = [peer_python("trainers"), Path(__file__).with_name("trainers.py"), what, directory, work, answer]
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**environment, **own})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    print(what, found)
    return found


def test_trainer_fine_tunes_resumes_and_saves_what_we_read(directory: Path, tmp_path: Path) -> None:
    found = run("trainer", directory, tmp_path)
    losses = found["losses"]
    assert losses[-1] < 0.8 * losses[0], losses
    assert found["recomputed"] == pytest.approx(losses, rel=1e-5)
    assert found["resumed"][-3:] == pytest.approx(losses[-3:], rel=1e-6)
    assert found["farthest"] < 1e-6
    assert found["biases_kept"]
    trained, was = (load_model(d, dtype=torch.float32).state_dict() for d in (found["saved"], directory))
    assert trained.keys() == was.keys()
    assert not torch.equal(trained["lm_head.weight"], was["lm_head.weight"])


def test_peft_adapts_trains_saves_and_merges(directory: Path, tmp_path: Path) -> None:
    all_found = run("peft", directory, tmp_path)
    for name, adapted in (("modules", {"query_key_value", "dense", "gate_proj"}), ("experts", {"experts"})):
        found = all_found[name]
        assert found["same_at_start"]
        assert found["losses"][-1] < 0.8 * found["losses"][0]
        assert found["changed"]
        assert all("lora_" in tensor for tensor in found["changed"])
        assert adapted <= {part for tensor in found["changed"] for part in tensor.split(".")}
        assert found["loaded_equal"]
        assert found["merged_difference"] < 1e-4 * found["largest"]
        assert found["merged_reread_equal"]


def test_trl_fine_tunes_whole_models_and_adapters(directory: Path, tmp_path: Path) -> None:
    found = run("trl", directory, tmp_path)
    for name in ("full", "lora", "recomputed", "answers"):
        assert found[name]["losses"][-1] < found[name]["losses"][0], found[name]
        assert found[name]["loss"] == pytest.approx(found[name]["our_loss"], rel=1e-5)
        assert found[name]["biases_kept"]
    assert found["recomputed"]["losses"] == pytest.approx(found["full"]["losses"], rel=1e-5)
    assert "Which colour" in found["full"]["learnt"]
    assert found["answers"]["learnt"] == "Door 0 is green.<|role_end|>"
    assert "generation" in found["unmarked"]
