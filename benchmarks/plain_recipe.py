"""Recipes on a machine without the validator of the command line: sections made of what a file and overrides say."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

import ling.config
from ling.config import ModelConfig, preset
from ling.config.fp8 import Fp8Config
from ling.config.recipe import Recipe
from ling.config.training import DataConfig, OptimConfig, TrainConfig

PACKAGED = Path(ling.config.__file__).with_name("recipes")


def plain_recipe(name: str | None = None, overrides: Iterable[str] = (), *, preset_name: str | None = None) -> Recipe:
    """Return the network, data, optimizer and training of a recipe in the package, or of a preset.

    overrides    `section.key=value`, the value as in YAML; they are ours, so nothing says what is wrong with them
    preset_name  in the place of the recipe's own
    """
    file = {} if name is None else yaml.safe_load((PACKAGED / f"{name}.yaml").read_text(encoding="utf-8"))
    if preset_name is not None:
        file["model"] = {}  # a change to another network
    below = preset(preset_name or file["preset"])
    tree = {section: below.get(section, {}) | file.get(section, {}) for section in ("model", "data", "optim", "train")}
    for text in overrides:
        path, _, value = text.partition("=")
        section, _, key = path.partition(".")
        tree[section][key] = _read(value)
    fp8 = tree["train"].pop("fp8", {})
    return Recipe(
        model=ModelConfig(**tree["model"]),
        data=DataConfig(**tree["data"]),
        optim=OptimConfig(**tree["optim"]),
        train=TrainConfig(**tree["train"], fp8=Fp8Config(**fp8)),
    )


def _read(text: str) -> Any:
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value  # 1e-3 has no point, so YAML takes it for a word
    except ValueError:
        return value
