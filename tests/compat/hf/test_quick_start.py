"""The published quick start on a local directory, with transformers 4.57 and 5 and through modelscope, without ling."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers import peer_python

from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.compat.hf import write_remote_code
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams

ENVIRONMENTS = {"transformers_5": "transformers", "transformers_4": "transformers", "modelscope": "modelscope"}


def run(environment: str, directory: Path, tmp_path: Path) -> dict[str, Any]:
    answer = tmp_path / "answer.json"
    command = [
        peer_python(environment), "-I", Path(__file__).with_name("quick_start.py"),
        ENVIRONMENTS[environment], directory, answer,
    ]  # fmt: skip
    own = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_published_quick_start_gives_our_engine_s_tokens(environment: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    to_safetensors(open_pieces(bundled_directory()), directory, ExportFormat(precision="float32"))
    write_remote_code(directory)
    found = run(environment, directory, tmp_path)
    assert found["module"].endswith("modeling_ling"), found["module"]

    llm = LLM.load(directory)
    answers = found["answers"]
    room = llm.model.config.max_position_embeddings
    for theirs, padded in zip(answers, found["padded"], strict=True):
        prompt = theirs["prompt_ids"]
        (ours,) = llm.generate([prompt], SamplingParams(max_tokens=min(512, room - len(prompt)), temperature=0))
        assert theirs["ids"][: len(ours.token_ids)] == ours.token_ids
        if ours.finish_reason == "stop":
            assert theirs["ids"] == ours.token_ids
            assert padded[: len(ours.token_ids)] == ours.token_ids
            assert set(padded[len(ours.token_ids) :]) <= {llm.model.config.pad_token_id}
        assert theirs["text"] == llm.tokenizer.decode(theirs["ids"], skip_special=True)
    tokens = sum(len(a["ids"]) for a in answers)
    print(f"{found['versions']}: {len(answers)} answers, {tokens} tokens equal; first: {answers[0]['text'][:60]!r}")
