"""Recipes of LLaMA-Factory: each key is mapped, announced or refused; and its own tokens for its own formats."""

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.peers import ROOT, peer_packages

from ling.checkpoint.pieces import open_pieces
from ling.compat.handover import plan_handover, write_handover
from ling.config.finetune import FinetuneConfig
from ling.config.recipe import Recipe, load_recipe
from ling.engine.bundled import bundled_directory
from ling.errors import ConfigError
from ling.finetune.llamafactory import read_llamafactory, recipe_from_llamafactory
from ling.finetune.prepare import prepare
from ling.tokenizer import Tokenizer

PUBLISHED: dict[str, Any] = {
    "model_name_or_path": "inclusionAI/Ling-mini-2.0", "trust_remote_code": True, "stage": "sft", "do_train": True,
    "finetuning_type": "full", "deepspeed": "examples/deepspeed/ds_z3_config.json",
    "dataset": "glaive_toolcall_en_demo", "template": "bailing_v2", "cutoff_len": 8192, "max_samples": 10000000000,
    "overwrite_cache": True, "preprocessing_num_workers": 16, "output_dir": "saves/ling-moe-lite/full/sft",
    "logging_steps": 1, "save_steps": 500, "plot_loss": True, "overwrite_output_dir": True,
    "report_to": "tensorboard", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
    "learning_rate": 1.0e-6, "num_train_epochs": 1.0, "lr_scheduler_type": "constant", "warmup_ratio": 0,
    "bf16": True, "ddp_timeout": 180000000, "resume_from_checkpoint": None,
}  # fmt: skip
"""Every key of the published `ling_full_sft.yaml`."""


def flat(tree: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()}


def known_keys() -> set[str]:
    sections = typing.get_type_hints(Recipe)
    return {f"{name}.{field.name}" for name, kind in sections.items() for field in dataclasses.fields(kind)}


def test_the_published_recipe_comes_out_whole() -> None:
    tree, notes = recipe_from_llamafactory(PUBLISHED, num_gpus=8)
    assert flat(tree) == {
        "run.start_from": "inclusionAI/Ling-mini-2.0",
        "run.track": ["tensorboard"],
        "train.sequence_length": 8192,
        "finetune.data": ["glaive_toolcall_en_demo"],
        "finetune.dataset_info": "data/dataset_info.json",
        "finetune.too_long": "truncate",
        "finetune.packing": False,
        "finetune.max_samples": 10000000000,
        "finetune.workers": 16,
        "finetune.epochs": 1.0,
        "train.micro_batch_size": 1,
        "train.global_batch_size": 8,
        "train.seed": 42,
        "train.checkpoint_every": 500,
        "optim.lr": 1e-6,
        "optim.schedule": "constant",
        "optim.warmup_steps": 0,
        "optim.weight_decay": 0.0,
        "optim.beta1": 0.9,
        "optim.beta2": 0.999,
        "optim.eps": 1e-8,
        "optim.clip_grad_norm": 1.0,
        "optim.expert_bias_update_rate": 0.0,
        "optim.router_z_loss": 0.0,
        "model.mtp_loss_scaling_factor": 0.0,
    }
    assert len(notes) == len(set(notes))


def test_every_key_is_mapped_announced_or_refused() -> None:
    before, notes = recipe_from_llamafactory(PUBLISHED)
    for key in PUBLISHED:
        announced = any(note.startswith(f"{key}:") and "left out" not in note for note in notes)
        try:
            after = recipe_from_llamafactory({name: v for name, v in PUBLISHED.items() if name != key})[0]
            changes = after != before
        except ConfigError:
            changes = True  # it is one of those that must be there
        is_the_default = {"gradient_accumulation_steps", "save_steps"}
        only_one_value = {"finetuning_type", "template", "warmup_ratio"}
        assert announced or changes or key in is_the_default | only_one_value, key


def test_every_key_that_is_written_exists() -> None:
    written = PUBLISHED | {
        "default_system": "S", "mask_history": True, "val_size": 0.1, "eval_strategy": "steps", "eval_steps": 9,
        "max_steps": 5, "save_total_limit": 3,
    }  # fmt: skip
    keys = set(flat(recipe_from_llamafactory(written)[0]))
    assert keys <= known_keys()


def test_what_is_written_is_a_recipe(tmp_path: Path) -> None:
    tree = recipe_from_llamafactory(PUBLISHED | {"mask_history": True, "val_size": 0.1, "max_samples": 7})[0]
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(tree))
    recipe = load_recipe(preset_name="tiny", file=tmp_path / "sft.yaml", overrides=["train.steps=500"])
    assert recipe.finetune == FinetuneConfig(
        data=("glaive_toolcall_en_demo",), dataset_info="data/dataset_info.json", too_long="truncate", packing=False,
        max_samples=7, workers=16, learn="last_answer", heldout_percent=10.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finetuning_type": "lora"}, r"finetuning_type 'lora' \(only full\)"),
        ({"stage": "dpo"}, r"stage 'dpo' \(only sft\)"),
        ({"template": "qwen"}, r"template 'qwen' \(only bailing_v2\)"),
        ({"train_on_prompt": True}, r"train_on_prompt True \(only answers are learnt\)"),
        ({"lora_rank": 8}, r"lora_rank \(not known\)"),
        ({"lora_rank": 8, "fp16": True}, "fp16 True .*|lora_rank .*; fp16"),
        ({"learning_rate": "fast"}, r"learning_rate 'fast' \(must be a number\)"),
        ({"learning_rate": True}, "learning_rate True"),
        ({"cutoff_len": 1.5}, r"cutoff_len 1.5 \(must be a whole number\)"),
        ({"cutoff_len": float("nan")}, "cutoff_len nan"),
        ({"seed": -1}, "seed -1"),
        ({"warmup_ratio": 0.1}, r"warmup_ratio 0.1 \(write warmup_steps instead\)"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type polynomial"),
        ({"optim": "adafactor"}, "optim 'adafactor'"),
        ({"report_to": "swanlab"}, "report_to swanlab"),
        ({"val_size": 100}, "val_size 100"),
        ({"eval_strategy": "epoch"}, "eval_strategy 'epoch'"),
        ({"dataset": 5}, r"dataset 5 \(must be names"),
        ({"packing": "yes"}, r"packing 'yes' \(must be true or false\)"),
        ({"dataset": None}, "is no fine-tuning recipe of LLaMA-Factory: it has no dataset"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_from_llamafactory(PUBLISHED | change)


def test_all_that_is_refused_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        recipe_from_llamafactory(PUBLISHED | {"lora_rank": 8, "fp16": True, "template": "x", "packing": 3})
    told = str(refused.value)
    assert all(key in told for key in ("lora_rank", "fp16", "template", "packing")), told
    assert told.count("packing") == 1


def test_numbers_as_yaml_reads_them_and_switches() -> None:
    def key(name: str, **change: Any) -> Any:
        return flat(recipe_from_llamafactory(PUBLISHED | change)[0]).get(name)

    assert key("optim.lr", learning_rate="1e-6") == 1e-6
    assert key("finetune.packing", packing=True) is True
    assert key("finetune.packing", neat_packing=True) is True
    assert key("train.steps", max_steps=-1) is None
    assert key("train.steps", max_steps=7) == 7
    assert key("optim.warmup_steps", warmup_steps=7, warmup_ratio=0.1) == 7
    assert key("run.evaluate_every", eval_strategy=False, eval_steps=5) == 0
    assert key("run.track", report_to="none") == []
    assert key("finetune.data", dataset="a, b") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "x.yaml is not valid YAML"),
        ("[1]", "must be a mapping"),
        ("1: 2", "must be a mapping"),
        (None, "cannot"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_llamafactory(tmp_path / "x.yaml")


# ---- LLaMA-Factory's own tokens ----

CALL = '{"name": "get_weather", "arguments": {"city": "上海"}}'
TOOLS = '[{"name": "get_weather", "parameters": {"type": "object", "properties": {}}}]'
SYSTEM = "Be brief.\ndetailed thinking off"
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system"}  # fmt: skip
INFO: dict[str, Any] = {
    "glaive": {"file_name": "glaive.json", "formatting": "openai",
               "columns": {"messages": "conversations", "tools": "tools"}},
    "openai": {"file_name": "openai.json", "formatting": "openai",
               "columns": {"messages": "messages", "tools": "tools"}, "tags": TAGS},
    "sharegpt": {"file_name": "sharegpt.json", "formatting": "sharegpt",
                 "columns": {"messages": "conversations", "system": "system", "tools": "tools"}},
    "alpaca": {"file_name": "alpaca.json",
               "columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system",
                           "history": "history"}},
}  # fmt: skip


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in pairs]


WEATHER = turns(("human", "Weather?"), ("function_call", CALL), ("observation", "ok"), ("gpt", "Sunny.\n"))
DATA: dict[str, list[dict[str, Any]]] = {
    "glaive": [{"conversations": WEATHER, "tools": TOOLS}, {"conversations": WEATHER[:1] + WEATHER[3:], "tools": ""}],
    "openai": [
        {
            "messages": [
                {"role": "system", "content": "S"}, {"role": "user", "content": "三?\n"},
                {"role": "assistant", "content": "", "tool_calls": [{"function": json.loads(CALL)}] * 2},
                {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "四", "tool_calls": []},
            ],
            "tools": json.loads(TOOLS),
        }
    ],
    "sharegpt": [
        {
            "conversations": turns(("human", "hi"), ("gpt", "yo"), ("human", " x"), ("gpt", "y")),
            "system": SYSTEM, "tools": "",
        },
        {"conversations": WEATHER, "system": "", "tools": TOOLS},
    ],
    "alpaca": [
        {"instruction": "Add.", "input": "1 2", "output": "3", "system": SYSTEM, "history": [["q", "a"]]},
        {"instruction": "Add.", "input": "", "output": "3", "system": "detailed thinking off", "history": []},
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_llamafactory_reads_the_same_tokens_out_of_its_formats(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    write_handover(plan_handover(open_pieces(bundled_directory()), "llamafactory", str(directory)), directory)
    for name, records in DATA.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
    request = {"directory": str(directory), "samples": [], "datasets": DATA, "dataset_dir": str(tmp_path)}
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    stand_in = ["-m", "tests.compat.llamafactory_stand_in", str(peer_packages("llamafactory"))]
    done = subprocess.run(
        [sys.executable, *stand_in, str(tmp_path / "request.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])["datasets"]
    tokenizer = Tokenizer.from_directory(directory)
    for name in DATA:
        info = str(tmp_path / "dataset_info.json")
        config = FinetuneConfig(data=(name,), dataset_info=info, thinking="auto")
        prepared = prepare(config, tokenizer, sequence_length=4096)
        assert not prepared.report.skipped, name
        for sample, pairs in enumerate(theirs[name]):
            ours = prepared.store.document(sample)
            assert tokenizer.decode(ours.tokens) == tokenizer.decode(
                [t for pair in pairs for part in pair for t in part]
            )
            assert ours.tokens == [token for pair in pairs for part in pair for token in part]
            assert ours.learnt == [
                learnt for source, answer in pairs for learnt in [False] * len(source) + [True] * len(answer)
            ]
