"""`ling finetune --check` and `--convert` from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo\x1b[2J"}], "id": 1}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{{\n{json.dumps(GOOD)}\n[]\n", encoding="utf-8")
    return path


def test_a_check_counts_lists_and_shows(ling: Any, data: Path) -> None:
    done = ling("finetune", "--check", data, "--samples", 1, "--sequence-length", 64)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "4 records: 2 samples, 2 skipped, 0 held out"
    assert lines[2].startswith("1 sequences of 64 tokens an epoch, ")
    assert "        2  damaged record" in lines
    assert "        2  id" in lines
    assert f"{data}:2: damaged record: Expecting property name enclosed in double quotes at character 2" in lines
    assert f"{data}:4: damaged record: must be an object, got list" in lines
    assert done.out.endswith("<role>ASSISTANT</role>>>>yo?[2J<|role_end|><<<\n")
    assert "tokenizer: the bundled model's" in done.err


def test_a_check_with_a_recipe_and_overrides_prints_json(ling: Any, data: Path, tmp_path: Path) -> None:
    recipe = {"preset": "tiny", "finetune": {"data": ["nowhere.jsonl"], "packing": False}}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(recipe))
    done = ling("finetune", tmp_path / "sft.yaml", data, "finetune.end_of_text=true", "--check", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["kept"], told["sequences"], told["sequence_length"]) == (2, 2, 8192)
    assert told["skipped"][0]["where"] == f"{data}:2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check"], "finetune.data names no data"),
        (["--check", "{data}", "--strict"], "2 of 4 records are skipped"),
        (["--check", "none.jsonl"], "there is no data file none.jsonl"),
        (["--check", "{data}", "a.yaml", "b.yaml"], "one recipe at a time, got a.yaml, b.yaml"),
        (["--check", "{data}", "finetune.lern=all"], "did you mean finetune.learn?"),
        (["--check", "{data}", "--sequence-length", "4"], "none of the 4 records in"),
        (["run.start_from=bundled"], "there is nothing to learn from: name data files"),
        (["{data}"], "fine-tuning begins with a model: name one with run.start_from"),
        (["--convert", "none.yaml"], "cannot read none.yaml"),
    ],
)
def test_a_mistake_is_one_line(ling: Any, data: Path, arguments: list[str], message: str) -> None:
    done = ling("finetune", *(argument.format(data=data) for argument in arguments))
    assert done.code == 2
    assert message in done.err.splitlines()[-1]


def test_a_recipe_of_llamafactory_is_printed_as_ours_and_what_it_loses_is_said(ling: Any, tmp_path: Path) -> None:
    given = {"model_name_or_path": "m", "stage": "sft", "dataset": "d", "template": "bailing_v2", "bf16": True,
             "per_device_train_batch_size": 2, "lr_scheduler_type": "cosine"}  # fmt: skip
    (tmp_path / "lf.yaml").write_text(yaml.safe_dump(given))
    done = ling("finetune", "--convert", tmp_path / "lf.yaml", "--gpus", 4)
    assert done.code == 0, done.err
    tree = yaml.safe_load(done.out)
    assert tree["train"]["global_batch_size"] == 8
    assert tree["finetune"]["data"] == ["d"]
    assert "bf16: no counterpart" in done.err
