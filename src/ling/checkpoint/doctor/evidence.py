"""Everything the checks look at, read once: JSON files, headers, the tokenizer. Never a tensor's data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ling.checkpoint.convert import MTP_FILE
from ling.checkpoint.doctor.finding import Finding, error
from ling.checkpoint.doctor.headers import FileHeader, TensorHeader, read_header
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
        """Whether every safetensors file could be read."""
        return sum(name.endswith(".safetensors") for name in self.files) == len(self.headers)

    @property
    def is_mtp_alone(self) -> bool:
        """Whether this is an MTP layer written into a directory of its own."""
        return MTP_FILE in self.files


def gather(directory: Path) -> Evidence:
    """Read what there is; CheckpointError if `directory` is no Hugging Face checkpoint at all."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    files = tuple(sorted(path.name for path in directory.iterdir() if path.is_file() and path.name[0] != "."))
    if CONFIG not in files:
        raise CheckpointError(
            f"{directory} has no config.json: the doctor reads Hugging Face directories; "
            "turn a training or Megatron checkpoint into one with ling convert"
        )
    problems: list[Finding] = []
    raw = _json(directory, CONFIG, files, problems) or {}
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
        model=_model(raw, problems),
        generation=_json(directory, GENERATION, files, problems) or {},
        tokenizer_config=_json(directory, TOKENIZER_CONFIG, files, problems) or {},
        tokenizer=_tokenizer(directory, files, problems),
        index=_json(directory, INDEX_NAME, files, problems),
        headers=headers,
        stored={key: headers[names[0]].tensors[key] for key, names in places.items()},
        places=places,
        unreadable=tuple(problems),
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
    if not raw:
        return None
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
        problems.append(error("tokenizer.json", what, "use the tokenizer that belongs to the model"))
        return None
