"""What a data set's card, the YAML on top of its README.md, says of its parts.

configs:
- config_name: en              a subset
  default: true
  data_dir: text               patterns begin there
  data_files:                  patterns, or a table of splits, or a list of these:
  - split: train
    path: en/train-*.parquet   or a list
"""

from dataclasses import dataclass
from typing import Any

import yaml

from ling.errors import DataError

DEFAULT_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class Subset:
    """A subset as its card tells it.

    folder    where its files are
    patterns  of each split, beneath `folder`; None: file names tell
    """

    folder: str
    patterns: dict[str, list[str]] | None
    is_default: bool


def read_card(text: str, where: str) -> dict[str, Subset]:
    """Return the subsets that a README.md names; {} if it leaves that to the names of files.

    Raises DataError for a card that cannot be meant.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), len(lines))
    try:
        tree = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError as error:
        raise _broken(where, f"its YAML is damaged: {' '.join(str(error).split())[:120]}") from None
    configs = tree.get("configs") if isinstance(tree, dict) else None
    if configs is None:
        return {}
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise _broken(where, "configs is no list of tables")
    return {str(config.get("config_name", "default")): _subset(config, where) for config in configs}


def _subset(config: dict[str, Any], where: str) -> Subset:
    files = config.get("data_files")
    patterns: dict[str, list[str]] | None = None
    if files is not None:
        patterns = {}
        for split, path in _pairs(files):
            found = path if isinstance(path, list) else [path]
            if not isinstance(split, str) or not all(isinstance(pattern, str) for pattern in found):
                raise _broken(where, "data_files are neither paths nor a table of splits with paths")
            patterns.setdefault(split, []).extend(found)
    return Subset(str(config.get("data_dir") or "").strip("/"), patterns, bool(config.get("default")))


def _pairs(files: Any) -> list[tuple[Any, Any]]:
    if isinstance(files, dict):
        return list(files.items())
    if not isinstance(files, list):
        files = [files]
    return [
        (one.get("split", DEFAULT_SPLIT), one.get("path")) if isinstance(one, dict) else (DEFAULT_SPLIT, one)
        for one in files
    ]


def _broken(where: str, what: str) -> DataError:
    return DataError(f"the card of {where} does not say which files there are: {what}; name them as {where}/PATH")
