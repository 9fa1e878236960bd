"""Which files of a repository a checkpoint consists of. No code, no pickles, no second copy of the weights."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ling.checkpoint.pieces import TOKENIZER_FILES
from ling.checkpoint.source import INDEX_NAME, read_json
from ling.errors import CheckpointError
from ling.hub import Kind

MODELS = Kind(
    noun="model",
    error=CheckpointError,
    unknown="neither a directory here nor a public model",
    command="ling download",
    elsewhere="run ling download {name} where there is a network, or give a directory",
)
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SMALL = ("config.json", *TOKENIZER_FILES, "LICENSE")


def choose(paths: Iterable[str], read_index: Callable[[], dict[str, Any]], name: str) -> list[str]:
    """Return the files of a repository that are needed.

    read_index  gives the index, if the repository has one
    Raises CheckpointError if it holds no safetensors checkpoint.
    """
    there = set(paths)
    small = [path for path in _SMALL if path in there]
    if "config.json" not in there:
        raise CheckpointError(f"{name} has no config.json: it is not a checkpoint that ling reads")
    if INDEX_NAME in there:
        shards = files_of_index(read_index(), name)
        if lost := sorted(set(shards) - there):
            raise CheckpointError(f"{name} lacks {lost[0]}, which its index names: the repository is incomplete")
        return [*small, INDEX_NAME, *shards]
    weights = sorted(path for path in there if path.endswith(".safetensors") and "/" not in path)
    if _SINGLE in weights or len(weights) == 1:
        return [*small, _SINGLE if _SINGLE in weights else weights[0]]
    raise CheckpointError(f"{name} holds no safetensors checkpoint (ling reads no pickles, such as .bin)")


def read_index(path: Path) -> dict[str, Any]:
    """Read an index that was downloaded; CheckpointError that says how to get it again if it is damaged."""
    try:
        return read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete {path.resolve()} and run the same command again") from None


def files_of_index(index: dict[str, Any], name: str) -> list[str]:
    """Return the weight files that an index names."""
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named or not all(_is_file_name(file) for file in named.values()):
        raise CheckpointError(f"{name}: {INDEX_NAME} has no weight_map of file names")
    return sorted(set(named.values()))


def missing_files(directory: Path) -> list[str]:
    """Return the files that a downloaded checkpoint lacks."""
    if not (directory / "config.json").is_file():
        return ["config.json"]
    if not (directory / INDEX_NAME).is_file():
        found = [path.name for path in directory.glob("*.safetensors")]
        if found and all(_SHARD.fullmatch(name) for name in found) and found != ["model-00001-of-00001.safetensors"]:
            return [INDEX_NAME]
        return [] if found else [_SINGLE]
    shards = files_of_index(read_index(directory / INDEX_NAME), str(directory))
    return [file for file in shards if not os.path.isfile(directory / file)]


def _is_file_name(file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
