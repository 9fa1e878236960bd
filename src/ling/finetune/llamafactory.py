"""LLaMA-Factory's fine-tuning recipes (the published `ling_full_sft.yaml` and its kin) as recipes of ours.

Every key of theirs is mapped, announced as one that changes nothing here, or refused. What such a file leaves out has
LLaMA-Factory's defaults and not ours; those are written into the recipe too, so the same run comes out. Its training
path has no router z-loss, no expert-bias update and no MTP loss (spec: training.md 8.3), which is written out as well.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ling.config.fields import shown
from ling.errors import ConfigError

Tree = dict[str, dict[str, Any]]

_DEFAULTS: dict[str, Any] = {
    "dataset_dir": "data", "cutoff_len": 2048, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "learning_rate": 5.0e-5, "num_train_epochs": 3.0, "lr_scheduler_type": "linear", "warmup_steps": 0,
    "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1.0e-8, "max_grad_norm": 1.0,
    "seed": 42, "save_steps": 500, "packing": False,
}  # fmt: skip
"""What LLaMA-Factory and the trainer below it take for a key that is left out."""

_REQUIRED = ("model_name_or_path", "stage", "dataset")

_NO_OPS = {
    "trust_remote_code": "no code from a checkpoint is ever run",
    "do_train": "ling finetune trains",
    "deepspeed": "shards are laid out by the section `parallel`",
    "fsdp": "shards are laid out by the section `parallel`",
    "fsdp_config": "shards are laid out by the section `parallel`",
    "ddp_timeout": "torchrun's own limits hold",
    "ddp_find_unused_parameters": "unused experts are handled",
    "overwrite_cache": "finetune.cache is made anew when data or settings change",
    "preprocessing_batch_size": "records are read as a stream",
    "dataloader_num_workers": "the order is the same for any number of readers",
    "dataloader_pin_memory": "decided by the device",
    "overwrite_output_dir": "a run's directory is given on the command line",
    "output_dir": "a run's directory is given on the command line",
    "logging_steps": "every step is logged",
    "logging_strategy": "every step is logged",
    "logging_first_step": "every step is logged",
    "logging_dir": "numbers lie in the run's directory",
    "plot_loss": "`ling plot` draws any run",
    "save_only_model": "checkpoints can always be gone on from",
    "save_strategy": "checkpoints are written by steps",
    "save_safetensors": "exports are always safetensors",
    "bf16": "precision belongs to the run, not to the data",
    "pure_bf16": "precision belongs to the run, not to the data",
    "tf32": "precision belongs to the run, not to the data",
    "flash_attn": "the attention kernel is chosen by device",
    "gradient_checkpointing": "recomputation belongs to the section `parallel`",
    "disable_gradient_checkpointing": "recomputation belongs to the section `parallel`",
    "enable_thinking": "LLaMA-Factory's template of Ling has no thinking mode; see finetune.thinking",
    "per_device_eval_batch_size": "evaluation has its own batches",
    "tokenized_path": "see finetune.cache",
    "include_num_input_tokens_seen": "tokens are always counted",
    "remove_unused_columns": "unread columns are counted in the report",
    "resize_vocab": "the vocabulary stays that of the checkpoint",
    "use_fast_tokenizer": "there is one tokenizer",
}

_SWITCHED_OFF = {
    "streaming": "data sets are read as streams anyway",
    "train_on_prompt": "only answers are learnt",
    "fp16": "training is in bfloat16 or float32",
    "use_dora": "only full fine-tuning is read from such a file",
    "use_muon": "set the section `optim` by hand",
    "use_galore": "set the section `optim` by hand",
    "use_badam": "set the section `optim` by hand",
    "use_apollo": "set the section `optim` by hand",
    "use_adam_mini": "set the section `optim` by hand",
    "disable_shuffling": "samples are always shuffled, by seed and epoch",
    "resume_from_checkpoint": "a run is gone on with from the command line",
    "eval_dataset": "hold samples out with val_size",
    "preserve_thinking": "the chat format leaves reasoning of earlier answers out",
    "do_eval": "set eval_strategy and eval_steps",
    "do_predict": "ling finetune trains",
}
"""Keys that may be there as long as they are switched off (false, null)."""

_SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine", "linear": "linear"}
_TRACKERS = ("tensorboard", "trackio", "wandb")


def read_llamafactory(path: Path, num_gpus: int = 1) -> tuple[Tree, list[str]]:
    """Read a YAML file of LLaMA-Factory and give what `recipe_from_llamafactory` does."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"{path} must be a mapping of LLaMA-Factory's keys, not {shown(given)}")
    try:
        return recipe_from_llamafactory(given, num_gpus)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def recipe_from_llamafactory(given: Mapping[str, Any], num_gpus: int = 1) -> tuple[Tree, list[str]]:
    """Translate a recipe: a tree for `load_recipe`, and one note for each key without a counterpart.

    num_gpus  devices the file was meant for: LLaMA-Factory's batch grows with them, ours does not
    Raises ConfigError that names every key that cannot be honoured.
    """
    if missing := [key for key in _REQUIRED if not given.get(key)]:
        raise ConfigError(f"is no fine-tuning recipe of LLaMA-Factory: it has no {', '.join(missing)}")
    refused: list[str] = []
    notes: list[str] = []
    for key, value in given.items():
        if key in _NO_OPS:
            notes.append(f"{key}: no counterpart; {_NO_OPS[key]}")
        elif key in _SWITCHED_OFF and value in (None, False):
            notes.append(f"{key}: off, as always")
        elif key in _SWITCHED_OFF:
            refused.append(f"{key} {shown(value)} ({_SWITCHED_OFF[key]})")
        elif key not in _MAPPED and value is not None:
            refused.append(f"{key} (not known)")
    taken = {key: value for key, value in given.items() if key in _MAPPED and value is not None}
    left_out = {key: value for key, value in _DEFAULTS.items() if key not in taken}
    if "warmup_ratio" in taken:
        left_out.pop("warmup_steps", None)
    notes += [f"{key}: left out, LLaMA-Factory's default {value} is taken" for key, value in left_out.items()]
    values = _Values(left_out | taken, num_gpus, notes)
    tree: Tree = {"model": {"mtp_loss_scaling_factor": 0.0}}
    tree["optim"] = {"expert_bias_update_rate": 0.0, "router_z_loss": 0.0}
    notes.append("LLaMA-Factory trains without router z-loss, expert-bias update and MTP loss; all three are off")
    for key in values.given:
        try:
            for path, value in _MAPPED[key](values).items():
                section, _, name = path.partition(".")
                tree.setdefault(section, {})[name] = value
        except ConfigError as error:
            refused.append(str(error))
    if refused:
        told = "; ".join(dict.fromkeys(refused))
        raise ConfigError(f"cannot be honoured: {told}. Take them out, or set the recipe by hand")
    return tree, list(dict.fromkeys(notes))


class _Values:
    """What a file says, read with the type each key must have."""

    def __init__(self, given: Mapping[str, Any], num_gpus: int, notes: list[str]) -> None:
        self.given, self.num_gpus, self.notes = given, num_gpus, notes

    def number(self, key: str) -> float:
        value = self.given[key]
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)  # YAML reads 1e-6 as text
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"{key} {shown(value)} (must be a number)") from None

    def count(self, key: str) -> int:
        number = self.number(key)
        if number != number or number in (float("inf"), float("-inf")) or number != int(number) or number < 0:
            raise ConfigError(f"{key} {shown(self.given[key])} (must be a whole number)")
        return int(number)

    def text(self, key: str) -> str:
        if not isinstance(self.given[key], str):
            raise ConfigError(f"{key} {shown(self.given[key])} (must be text)")
        return self.given[key]

    def names(self, key: str) -> list[str]:
        value = self.given[key]
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{key} {shown(value)} (must be names with commas between)")
        return [name.strip() for name in names]

    def switch(self, key: str) -> bool:
        if not isinstance(self.given[key], bool):
            raise ConfigError(f"{key} {shown(self.given[key])} (must be true or false)")
        return self.given[key]

    def only(self, key: str, *choices: str) -> dict[str, Any]:
        """Refuse all but some values, which then say nothing more."""
        if self.given[key] not in choices:
            raise ConfigError(f"{key} {shown(self.given[key])} (only {' or '.join(choices)})")
        return {}


def _batch(values: _Values) -> dict[str, Any]:
    micro, accumulated = values.count("per_device_train_batch_size"), values.count("gradient_accumulation_steps")
    if values.num_gpus == 1:
        values.notes.append("train.global_batch_size is that of one GPU; LLaMA-Factory multiplies it by their number")
    return {"train.micro_batch_size": micro, "train.global_batch_size": micro * accumulated * values.num_gpus}


def _packing(values: _Values) -> dict[str, Any]:
    packs = any(values.given.get(key) and values.switch(key) for key in ("packing", "neat_packing"))
    if packs and not values.given.get("neat_packing"):
        values.notes.append("packing: samples of a sequence never see each other here, in LLaMA-Factory they do")
    return {"finetune.packing": packs}


def _cutoff(values: _Values) -> dict[str, Any]:
    values.notes.append("cutoff_len: longer samples are cut at their end, where LLaMA-Factory shortens turn by turn")
    return {"train.sequence_length": values.count("cutoff_len"), "finetune.too_long": "truncate"}


def _schedule(values: _Values) -> dict[str, Any]:
    name = values.text("lr_scheduler_type")
    if name not in _SCHEDULES:
        raise ConfigError(f"lr_scheduler_type {name} (known: {', '.join(_SCHEDULES)})")
    return {"optim.schedule": _SCHEDULES[name]}


def _warmup_ratio(values: _Values) -> dict[str, Any]:
    if values.number("warmup_ratio") and "warmup_steps" not in values.given:
        raise ConfigError(f"warmup_ratio {values.given['warmup_ratio']} (write warmup_steps instead)")
    return {} if "warmup_steps" in values.given else {"optim.warmup_steps": 0}


def _steps(values: _Values) -> dict[str, Any]:
    return {} if values.number("max_steps") == -1 else {"train.steps": values.count("max_steps")}


def _heldout(values: _Values) -> dict[str, Any]:
    size = values.number("val_size")
    if not 0 <= size < 0.5:
        raise ConfigError(f"val_size {values.given['val_size']} (a share below 0.5; a number of samples has none)")
    return {"finetune.heldout_percent": 100 * size}


def _evaluation(values: _Values) -> dict[str, Any]:
    strategy = values.given.get("eval_strategy", "steps")
    if strategy not in ("no", "steps", False):  # YAML reads a bare no as false
        raise ConfigError(f"eval_strategy {shown(strategy)} (only no or steps)")
    every = values.count("eval_steps") if "eval_steps" in values.given else 500
    return {"run.evaluate_every": every if strategy == "steps" else 0}


def _trackers(values: _Values) -> dict[str, Any]:
    names = [name for name in values.names("report_to") if name != "none"]
    if unknown := [name for name in names if name not in _TRACKERS]:
        raise ConfigError(f"report_to {unknown[0]} (known: none, {', '.join(_TRACKERS)})")
    return {"run.track": names}


def _optimizer(values: _Values) -> dict[str, Any]:
    return values.only("optim", "adamw_torch", "adamw_torch_fused", "adamw_hf")


def _number(key: str, path: str) -> Callable[[_Values], dict[str, Any]]:
    return lambda values: {path: values.number(key)}


def _count(key: str, path: str) -> Callable[[_Values], dict[str, Any]]:
    return lambda values: {path: values.count(key)}


_MAPPED: dict[str, Callable[[_Values], dict[str, Any]]] = {
    "model_name_or_path": lambda v: {"run.start_from": v.text("model_name_or_path")},
    "stage": lambda v: v.only("stage", "sft"),
    "finetuning_type": lambda v: v.only("finetuning_type", "full"),
    "template": lambda v: v.only("template", "bailing_v2"),
    "dataset": lambda v: {"finetune.data": v.names("dataset")},
    "dataset_dir": lambda v: {"finetune.dataset_info": f"{v.text('dataset_dir')}/dataset_info.json"},
    "mix_strategy": lambda v: v.only("mix_strategy", "concat"),
    "default_system": lambda v: {"finetune.default_system": v.text("default_system")},
    "mask_history": lambda v: {"finetune.learn": "last_answer" if v.switch("mask_history") else "answers"},
    "cutoff_len": _cutoff,
    "packing": _packing,
    "neat_packing": _packing,
    "max_samples": _count("max_samples", "finetune.max_samples"),
    "preprocessing_num_workers": _count("preprocessing_num_workers", "finetune.workers"),
    "val_size": _heldout,
    "eval_strategy": _evaluation,
    "eval_steps": _evaluation,
    "num_train_epochs": _number("num_train_epochs", "finetune.epochs"),
    "max_steps": _steps,
    "per_device_train_batch_size": _batch,
    "gradient_accumulation_steps": _batch,
    "seed": _count("seed", "train.seed"),
    "learning_rate": _number("learning_rate", "optim.lr"),
    "lr_scheduler_type": _schedule,
    "warmup_ratio": _warmup_ratio,
    "warmup_steps": _count("warmup_steps", "optim.warmup_steps"),
    "optim": _optimizer,
    "weight_decay": _number("weight_decay", "optim.weight_decay"),
    "adam_beta1": _number("adam_beta1", "optim.beta1"),
    "adam_beta2": _number("adam_beta2", "optim.beta2"),
    "adam_epsilon": _number("adam_epsilon", "optim.eps"),
    "max_grad_norm": _number("max_grad_norm", "optim.clip_grad_norm"),
    "save_steps": _count("save_steps", "train.checkpoint_every"),
    "save_total_limit": _count("save_total_limit", "run.keep_checkpoints"),
    "report_to": _trackers,
}
