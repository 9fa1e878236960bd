"""The recipes and the data format of `ling export --for llamafactory`, and LLaMA-Factory's own reading of both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.peers import ROOT, peer_packages

from ling.checkpoint.pieces import open_pieces
from ling.compat.handover import plan_handover, write_handover
from ling.engine.bundled import bundled_directory
from ling.errors import ConfigError
from ling.tokenizer import Tokenizer, encode_chat

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "上海"}}}


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SAMPLES: list[dict[str, Any]] = [
    {"messages": [message("user", "hi"), message("assistant", "hello")]},
    {"messages": [message("system", "Be brief."), message("user", "hi"), message("assistant", "hello")]},
    {
        "messages": [
            message("user", "one?"), message("assistant", "two"), message("user", "三?\n"), message("assistant", "四"),
        ]
    },
    {
        "messages": [
            message("system", "S"), message("user", "Weather?"), message("assistant", "", tool_calls=[CALL, CALL]),
            message("tool", '{"r": 1}'), message("tool", '{"r": 2}'), message("assistant", "Sunny."),
        ],
        "tools": [WEATHER],
    },
    {
        "messages": [
            message("user", "Weather?"), message("assistant", "", tool_calls=[CALL]), message("tool", "ok"),
            message("assistant", "Sunny."),
        ],
        "tools": [WEATHER],
    },
]  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    write_handover(plan_handover(open_pieces(bundled_directory()), "llamafactory", str(target)), target)
    return target


def recipes(directory: Path) -> dict[str, dict[str, Any]]:
    return {
        kind: yaml.safe_load((directory / f"llamafactory/sft_{kind}.yaml").read_text()) for kind in ("full", "lora")
    }


def test_the_recipes_name_what_was_written(directory: Path) -> None:
    for kind, recipe in recipes(directory).items():
        assert recipe["finetuning_type"] == kind
        assert recipe["template"] == "bailing_v2"
        assert Path(recipe["model_name_or_path"]) == directory
        info = json.loads((Path(recipe["dataset_dir"]) / "dataset_info.json").read_text())
        assert info[recipe["dataset"]]["formatting"] == "openai"
        assert recipe["cutoff_len"] == 512
    assert json.loads(Path(recipes(directory)["full"]["deepspeed"]).read_text())["zero_optimization"]["stage"] == 3


def test_weights_that_cannot_be_trained_are_refused() -> None:
    with pytest.raises(ConfigError, match="trains no FP8 weights; use --dtype bfloat16"):
        plan_handover(open_pieces(bundled_directory()), "llamafactory", "model", dtype="float8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_llamafactory_knows_every_argument_and_renders_chats_as_we_do(directory: Path, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"directory": str(directory), "samples": SAMPLES}), encoding="utf-8")
    command = [sys.executable, "-m", "tests.compat.llamafactory_stand_in", peer_packages("llamafactory"), request]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for recipe in recipes(directory).values():
        assert set(recipe) <= set(found["fields"]), set(recipe) - set(found["fields"])
    tokenizer = Tokenizer.from_directory(directory)
    for sample, tokens in zip(SAMPLES, found["tokens"], strict=True):
        ours = encode_chat(tokenizer, sample["messages"], tools=sample.get("tools"))[0]
        assert tokenizer.decode(tokens) == tokenizer.decode(ours)
        assert tokens == ours
