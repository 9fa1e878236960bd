"""The published quick start on a local directory, with transformers 4.57 and 5 and through modelscope, without ling."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.peers import peer_python
from tests.compat.ties import certain

from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat, Precision
from ling.compat.hf import write_remote_code
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.model.batch import pack
from ling.testing.tolerances import GOLDEN, assert_close

APART: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.25, "float8": 0.25}
"""Between the two largest logits; below, rounding may choose the other token (an ulp of bfloat16 is 1/8 above 16)."""
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
@pytest.mark.parametrize("precision", APART)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_published_quick_start_gives_our_engine_s_tokens(
    environment: str, precision: Precision, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    to_safetensors(open_pieces(bundled_directory()), directory, ExportFormat(precision=precision))
    write_remote_code(directory)
    found = run(environment, directory, tmp_path)
    assert found["module"].endswith("modeling_ling"), found["module"]

    if precision == "float8":  # transformers computes with the values: the engine is given them too
        to_safetensors(open_pieces(directory), tmp_path / "values", ExportFormat(precision="bfloat16"))
        directory = tmp_path / "values"
    llm = LLM(directory)
    answers = found["answers"]
    room = llm.model.config.max_position_embeddings
    tokens = 0
    for theirs, padded in zip(answers, found["padded"], strict=True):
        prompt = theirs["prompt_ids"]
        (output,) = llm.generate([prompt], SamplingParams(max_tokens=min(512, room - len(prompt)), temperature=0))
        (done,) = output.outputs
        ours = done.token_ids
        clear = certain(llm.model, prompt, ours, APART[precision])
        tokens += clear
        assert theirs["ids"][:clear] == ours[:clear]
        assert padded[:clear] == ours[:clear], "in a batch padded on the left"
        if clear == len(ours) and done.finish_reason == "stop":
            assert theirs["ids"] == ours
            assert set(padded[clear:]) <= {llm.model.config.pad_token_id}
        assert theirs["text"] == llm.tokenizer.decode(theirs["ids"], skip_special=True)
    assert tokens > 8 * len(answers), "too few were certain"
    if precision == "float32":
        rows, positions, batch = pack([answers[0]["prompt_ids"]])
        with torch.no_grad():
            expected = llm.model.logits(llm.model(rows, positions, batch).hidden)
        assert_close(torch.tensor(found["logits"]), expected, GOLDEN, "logits")
    print(f"{found['versions']} {precision}: {len(answers)} answers, {tokens} tokens equal; {answers[1]['text']!r}")
