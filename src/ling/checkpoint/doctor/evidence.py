"""Everything the checks look at, read once: JSON files, headers, the tokenizer. Never a tensor's data."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ling.checkpoint.convert import MTP_FILE
from ling.checkpoint.doctor.finding import Finding, error
from ling.checkpoint.doctor.headers import FileHeader, TensorHeader, read_header
from ling.checkpoint.megatron import find_iteration
from ling.checkpoint.names import SCALE_SUFFIX
from ling.checkpoint.source import INDEX_NAME, read_json
from ling.config import ModelConfig, read_published
from ling.errors import CheckpointError, ConfigError
from ling.tokenizer import Tokenizer

CONFIG, GENERATION, TOKENIZER_CONFIG, TEMPLATE = (
    "config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A checkpoint directory as its small files and headers describe it."""

    directory: Path
    files: tuple[str, ...]
    """Names of all files, sorted."""
    raw_config: Mapping[str, Any]
    """config.json as it is."""
    config: Mapping[str, Any]
    """The object in it that describes the network: itself, or a nested `llm_config`."""
    model: ModelConfig | None
    """What it means; None if it means nothing, which is a finding."""
    generation: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    tokenizer: Tokenizer | None
    index: Mapping[str, Any] | None
    headers: Mapping[str, FileHeader]
    """By file name; of the files that are whole."""
    stored: Mapping[str, TensorHeader]
    """Every tensor, under its key."""
    places: Mapping[str, tuple[str, ...]]
    """The files that hold each tensor."""
    unreadable: tuple[Finding, ...]

    @property
    def nested(self) -> bool:
        return self.config is not self.raw_config

    @property
    def whole(self) -> bool:
        """Whether every safetensors file is there and could be read."""
        return not self.absent and sum(name.endswith(".safetensors") for name in self.files) == len(self.headers)

    @property
    def absent(self) -> list[str]:
        """Files that the index names and that are not there."""
        named = (self.index or {}).get("weight_map")
        names = {name for name in named.values() if isinstance(name, str)} if isinstance(named, dict) else set()
        return sorted(names - set(self.files))

    @property
    def is_mtp_alone(self) -> bool:
        """Whether this is an MTP layer written into a directory of its own."""
        return MTP_FILE in self.files

    def section(self, key: str) -> Mapping[str, Any]:
        """Return the object under a key of the configuration, an empty one if there is none."""
        value = self.config.get(key)
        return value if isinstance(value, Mapping) else {}

    def with_stored_mtp(self, model: ModelConfig) -> ModelConfig:
        """Return `model` with the MTP layers that there are tensors of, whatever config.json promises."""
        held = {layer for key in self.stored if (layer := layer_of(key)) >= model.num_hidden_layers}
        return dataclasses.replace(model, num_nextn_predict_layers=len(held))


def layer_of(key: str) -> int:
    """Return the number of the layer a stored tensor belongs to, -1 outside of layers."""
    parts = key.removesuffix(SCALE_SUFFIX).split(".")
    in_layer = len(parts) > 3 and parts[:2] == ["model", "layers"]
    return int(parts[2]) if in_layer and parts[2].isdecimal() and len(parts[2]) < 10 else -1


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def gather(directory: Path) -> Evidence:
    """Read what there is; CheckpointError if `directory` is no Hugging Face checkpoint at all."""
    if not directory.is_dir():
        raise CheckpointError(_not_a_directory(directory))
    files = tuple(sorted(path.name for path in directory.iterdir() if path.is_file() and path.name[0] != "."))
    if CONFIG not in files:
        raise CheckpointError(_another_kind(directory))
    problems: list[Finding] = []
    parsed = _json(directory, CONFIG, files, problems)
    raw = parsed or {}
    nested = raw.get("llm_config")
    config = nested if isinstance(nested, dict) and nested else raw
    headers: dict[str, FileHeader] = {}
    for name in (n for n in files if n.endswith(".safetensors")):
        try:
            headers[name] = read_header(directory / name)
        except CheckpointError as problem:
            problems.append(error(name, f"the file {problem}", "copy it again"))
    places: dict[str, tuple[str, ...]] = {}
    for name, header in headers.items():
        for key in header.tensors:
            places[key] = (*places.get(key, ()), name)
    return Evidence(
        directory=directory,
        files=files,
        raw_config=raw,
        config=config,
        model=None if parsed is None else _model(parsed, problems),
        generation=_json(directory, GENERATION, files, problems) or {},
        tokenizer_config=_json(directory, TOKENIZER_CONFIG, files, problems) or {},
        tokenizer=_tokenizer(directory, files, problems),
        index=_json(directory, INDEX_NAME, files, problems),
        headers=headers,
        stored={key: headers[names[0]].tensors[key] for key, names in places.items()},
        places=places,
        unreadable=tuple(problems),
    )


def _not_a_directory(path: Path) -> str:
    if path.suffix == ".gguf" and path.is_file():
        return f"{path} is a GGUF file; the doctor examines Hugging Face directories, such as the one it was made from"
    if path.exists():
        return f"{path} is not a directory; give the one that it lies in"
    return f"{path} does not exist; give a directory, or a model's name on a hub, owner/name"


def _another_kind(directory: Path) -> str:
    kind = "Megatron checkpoint" if find_iteration(directory) else None
    if kind is None and (directory / ".metadata").is_file():
        kind = "training checkpoint"
    if kind is None:
        return f"{directory} has no config.json: the doctor examines Hugging Face directories"
    return (
        f"{directory} is a {kind}, and has no config.json; the doctor examines Hugging Face directories: "
        f"ling convert {directory} TARGET makes one"
    )


def _json(directory: Path, name: str, files: tuple[str, ...], problems: list[Finding]) -> dict[str, Any] | None:
    if name not in files:
        return None
    try:
        return read_json(directory / name)
    except CheckpointError as problem:
        what = str(problem).replace(str(directory / name), "the file")
        problems.append(error(name, what, "copy it again, or mend it by hand"))
        return None


def _model(raw: dict[str, Any], problems: list[Finding]) -> ModelConfig | None:
    try:
        return read_published(raw, where=CONFIG)
    except ConfigError as problem:
        problems.append(error(CONFIG, str(problem).removeprefix(f"{CONFIG}: "), "mend this key by hand"))
        return None


def _tokenizer(directory: Path, files: tuple[str, ...], problems: list[Finding]) -> Tokenizer | None:
    if "tokenizer.json" not in files:
        return None
    try:
        return Tokenizer.from_directory(directory)
    except CheckpointError as problem:
        what = " ".join(str(problem).split()).replace(f"{directory}/", "")
        what = what.replace(f" of {directory}", "").replace(str(directory), "the tokenizer")
        if {found.where for found in problems} & set(re.split(r"[\s:,]+", what)):
            return None  # a file beside it, of which this is known
        problems.append(error("tokenizer.json", what, "use the tokenizer that belongs to the model"))
        return None
