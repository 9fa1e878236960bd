"""Handing a model over to LLaMA-Factory: two recipes, the entry of a data set, and the sharding they name.

The values are the published fine-tuning's (spec: training.md 8.3): its chat template `bailing_v2`, data in OpenAI's
form, a constant 1e-6, one epoch. The full recipe shards by ZeRO stage 3; the LoRA recipe adapts attention alone, since
a rank of 8 on each of hundreds of experts is neither small nor often trained.
"""

import json
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from ling.checkpoint.save import Precision
from ling.compat.serving import Serving
from ling.config import ModelConfig
from ling.errors import ConfigError

NAME = "LLaMA-Factory"
VERSION = "0.9.5"
"""Whose arguments, template and data format the files below were checked against."""
NEEDS_HF_CODE = True

FOLDER = "llamafactory"
DATASET = "ling_sft"
DATA_FILE = "train.jsonl"

_DATASET_INFO = {
    DATASET: {
        "file_name": DATA_FILE,
        "formatting": "openai",
        "columns": {"messages": "messages", "tools": "tools"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
            "function_tag": "function_call",
            "system_tag": "system",
        },
    }
}
_ZERO3 = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


def adapt(model: ModelConfig, precision: Precision) -> ModelConfig:
    """Return what LLaMA-Factory trains of `model`: all of it, if the weights are values and not FP8 codes."""
    if precision == "float8":
        raise ConfigError(f"{NAME} trains no FP8 weights; use --dtype bfloat16")
    return model


def files(directory: str, model: ModelConfig) -> dict[str, str]:
    """Return the text of files that only this program reads, by name."""
    return {
        f"{FOLDER}/dataset_info.json": json.dumps(_DATASET_INFO, indent=2) + "\n",
        f"{FOLDER}/zero3.json": json.dumps(_ZERO3, indent=2) + "\n",
        f"{FOLDER}/sft_full.yaml": _yaml(directory, model, "full"),
        f"{FOLDER}/sft_lora.yaml": _yaml(directory, model, "lora"),
    }


def launch_lines(directory: str, model: ModelConfig, serving: Serving) -> list[str]:
    """Return the commands that fine-tune `directory`."""
    return [f"llamafactory-cli train {quote(directory)}/{FOLDER}/sft_{kind}.yaml" for kind in ("full", "lora")]


def notes(source: ModelConfig, model: ModelConfig, precision: Precision, serving: Serving) -> list[str]:
    """Return what a person should know before starting it."""
    return [
        f"put the conversations into {FOLDER}/{DATA_FILE}: one JSON object a line, with messages (and tools)",
        "every second message must be the assistant's or its tool calls; conversations that end otherwise are skipped",
        "LLaMA-Factory loads the network through transformers, from the code that lies in the directory "
        "(trust_remote_code)",
    ]


def _yaml(directory: str, model: ModelConfig, kind: str) -> str:
    directory = str(Path(directory).resolve())  # the recipe is run from anywhere
    recipe: dict[str, Any] = {
        "model_name_or_path": directory,
        "trust_remote_code": True,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": kind,
    }
    if kind == "lora":
        recipe |= {"lora_rank": 8, "lora_target": "query_key_value,dense"}
    else:
        recipe |= {"deepspeed": f"{directory}/{FOLDER}/zero3.json"}
    recipe |= {
        "dataset": DATASET,
        "dataset_dir": f"{directory}/{FOLDER}",
        "template": "bailing_v2",
        "cutoff_len": min(8192, model.max_position_embeddings),
        "output_dir": f"{directory}-sft-{kind}",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1.0e-6 if kind == "full" else 1.0e-4,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1.0,
        "bf16": True,
        "logging_steps": 10,
        "save_steps": 500,
    }
    return yaml.safe_dump(recipe, sort_keys=False)
