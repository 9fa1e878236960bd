"""A checkpoint as another program loads it: the configuration spelt out, stop ids, tokenizer, weights.

Weights whose values stay as they are keep their files (linked, so they take no room); only tensors that the program
would refuse are cut out. Everything else beside them is written anew from what was read, so nothing is left to guess.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ling.checkpoint.convert import Progress, take_over_safetensors, to_safetensors
from ling.checkpoint.names import published_pieces
from ling.checkpoint.pieces import PieceSource, files_of_tokenizer
from ling.checkpoint.save import ExportFormat, Precision, config_json
from ling.checkpoint.shards import Shards, stored_precision
from ling.checkpoint.source import TensorSource, read_json
from ling.compat import llamafactory, sglang, vllm
from ling.compat.hf import write_remote_code
from ling.compat.serving import Serving, check_serving, with_yarn
from ling.config import ModelConfig
from ling.errors import ConfigError
from ling.tokenizer import Tokenizer
from ling.tokenizer.special import DOCUMENT_END, TEXT_START, TURN_END
from ling.tokenizer.template import PRETRAIN_TEMPLATE, SFT_TEMPLATE


class Program(Protocol):
    """What a module of this package says about the program it is named after."""

    NAME: str
    VERSION: str
    NEEDS_HF_CODE: bool
    """Whether it runs the network from code in the directory, through transformers."""

    def adapt(self, model: ModelConfig, precision: Precision) -> ModelConfig: ...
    def files(self, directory: str, model: ModelConfig) -> dict[str, str]: ...
    def launch_lines(self, directory: str, model: ModelConfig, serving: Serving) -> list[str]: ...
    def notes(self, source: ModelConfig, model: ModelConfig, precision: Precision, serving: Serving) -> list[str]: ...


PROGRAMS: dict[str, Program] = {"vllm": vllm, "sglang": sglang, "llamafactory": llamafactory}

_PUBLISHED_VOCABULARY = 157184
_PUBLISHED_STOPS = (156892, 156895)
"""End of a document and end of a turn (spec: tokenizer_chat.md 1)."""
_NOT_CONVERTED = ["lm_head", "eh_proj", "gate"]
"""Linear layers that FP8 checkpoints of this family hold in bfloat16; unlisted, engines look for their scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What is going to be written, decided and checked."""

    source: PieceSource
    model: ModelConfig
    """As the program runs it."""
    precision: Precision
    keeps_values: bool
    """Whether every tensor stays as the source stores it."""
    files: dict[str, str]
    """Text of what is written anew beside the weights, by name."""
    tokenizer: Path | None
    hf_code: bool
    """Whether code for transformers is put into the directory."""
    launch: list[str]
    notes: list[str]


def plan_handover(
    source: PieceSource,
    program: str,
    directory: str,
    *,
    dtype: Precision | None = None,
    serving: Serving | None = None,
    tokenizer: Path | None = None,
    hf_code: bool = False,
) -> Handover:
    """Decide how `source` becomes a directory for `program`, one of PROGRAMS.

    directory  its name, for the launch lines
    dtype      None: as stored; bfloat16 where that is no single precision
    hf_code    whether code for transformers goes with it; for a program that needs it, it does anyway
    Raises ConfigError for a network or a size that the program cannot take.
    """
    chosen, serving = PROGRAMS[program], serving or Serving()
    stored = _stored_precision(source)
    precision = dtype or stored or "bfloat16"
    model = chosen.adapt(with_yarn(source.config, serving.yarn), precision)
    check_serving(model, precision, serving)
    found = source.tokenizer_files() if tokenizer is None else files_of_tokenizer(tokenizer)
    text = _read_tokenizer({file.name: file for file in found}, model)
    model = replace(model, eos_token_id=text.ids["eos_token_id"] or model.eos_token_id)
    files = {"config.json": _json(_config(model, precision)), **text.files, **chosen.files(directory, model)}
    return Handover(
        source=source, model=model, precision=precision, keeps_values=precision == stored, files=files,
        tokenizer=tokenizer, hf_code=hf_code or chosen.NEEDS_HF_CODE,
        launch=chosen.launch_lines(directory, model, serving),
        notes=[*text.notes, *chosen.notes(source.config, model, precision, serving)],
    )  # fmt: skip


def write_handover(
    plan: Handover,
    target: Path,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Shards | None:
    """Write `plan` as `target`, whole or not at all; return what became of the weights' files, None if all are new."""

    def add_files(directory: Path) -> None:
        for name, text in plan.files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text, encoding="utf-8")
        if plan.hf_code:
            write_remote_code(directory)

    plan.source.config = plan.model
    if plan.keeps_values:
        return take_over_safetensors(
            plan.source, target, ExportFormat(precision=plan.precision), add_files,
            tokenizer=plan.tokenizer, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    to_safetensors(
        plan.source, target, ExportFormat(precision=plan.precision), tokenizer=plan.tokenizer, overwrite=overwrite,
        workers=workers, progress=progress, finish=add_files,
    )  # fmt: skip
    return None


def _stored_precision(source: PieceSource) -> Precision | None:
    if source.kind != "safetensors":
        return None
    return stored_precision(TensorSource(source.directory), published_pieces(source.config))


def _config(model: ModelConfig, precision: Precision) -> dict[str, Any]:
    """Return the published keys and both generations of spellings for the rotation, and what FP8 leaves alone."""
    tree = config_json(model, ExportFormat(precision=precision))
    scaling = {key: value for key, value in (tree["rope_scaling"] or {}).items() if key != "type"}
    own = {key: tree[key] for key in ("rope_theta", "partial_rotary_factor")}
    tree["rope_parameters"] = {"rope_type": "default", **own, **scaling}
    if precision == "float8":
        tree["quantization_config"] = {**tree["quantization_config"], "modules_to_not_convert": _NOT_CONVERTED}
    return tree


@dataclass(frozen=True, slots=True)
class _Text:
    """What the tokenizer's files become."""

    ids: dict[str, Any]
    """As generation_config.json names them. Both ends count: of a turn and of a text."""
    files: dict[str, str]
    notes: list[str]


def _read_tokenizer(found: Mapping[str, Path], model: ModelConfig) -> _Text:
    if "tokenizer.json" not in found:
        stops = _PUBLISHED_STOPS if model.vocab_size == _PUBLISHED_VOCABULARY else model.eos_token_ids
        ids = {"eos_token_id": stops or None, "pad_token_id": model.pad_token_id}
        return _Text(ids, _generation(found, ids), ["no tokenizer came with the weights: give it with --tokenizer"])
    directory = found["tokenizer.json"].parent
    tokenizer = Tokenizer.from_directory(directory)
    start, end, turn_end = (tokenizer.encode(token)[0] for token in (TEXT_START, DOCUMENT_END, TURN_END))
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer in {directory} has {tokenizer.vocab_size} ids, the model {model.vocab_size}: "
            "they do not belong together"
        )
    ids = {"bos_token_id": start, "eos_token_id": tuple(sorted((end, turn_end))), "pad_token_id": end}
    files = _generation(found, ids)
    config = read_json(found["tokenizer_config.json"]) if "tokenizer_config.json" in found else {}
    if "chat_template" in config or "chat_template.jinja" in found:
        return _Text(ids, files, [])
    files["chat_template.jinja"] = SFT_TEMPLATE if tokenizer.is_chat else PRETRAIN_TEMPLATE
    return _Text(ids, files, ["the tokenizer came without a chat template: wrote the published format's"])


def _generation(found: Mapping[str, Path], ids: dict[str, Any]) -> dict[str, str]:
    name = "generation_config.json"
    given = read_json(found[name]) if name in found else {"do_sample": False}
    return {name: _json({**given, **{key: value for key, value in ids.items() if value is not None}})}


def _json(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
