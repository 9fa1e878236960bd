"""A recipe: default < preset < YAML file < `section.key=value`, laid over each other first and checked once.

So two changes that only fit together are accepted, and what is misspelt is refused with a suggestion.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ling.config.checks import check_recipe
from ling.config.fields import shown
from ling.config.finetune import FinetuneConfig
from ling.config.model import ModelConfig
from ling.config.parallel import ParallelConfig
from ling.config.presets import Tree, preset
from ling.config.run import RunConfig
from ling.config.training import DataConfig, OptimConfig, TrainConfig
from ling.errors import ConfigError

_PACKAGED = Path(__file__).with_name("recipes")

# What yaml.safe_load raises: its own error, and what escapes from its converters (2024-13-01, `!!int x`, `!!bool x`).
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything a run is told, in sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


def load_recipe(
    *,
    preset_name: str | None = None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
    model: ModelConfig | None = None,
) -> Recipe:
    """Resolve a recipe.

    model        stands below everything else: that of a checkpoint to begin with
    preset_name  a name of `ling.config.PRESETS`; a file's own `preset:` line serves if this is None
    file         YAML with a `preset` line and any of the sections, or the name of a recipe in the package
    overrides    `section.key=value`, the value written as in YAML
    Raises ConfigError with one line that names the key and its source.
    """
    tree: Tree = {} if model is None else {"model": recipe_tree(model)}
    from_file = _read_yaml(file) if file is not None else {}
    named = from_file.pop("preset", None)
    chosen = named if preset_name is None else preset_name
    if chosen is not None:
        _overlay(tree, preset(str(chosen)), f"in preset {chosen}")
    _overlay(tree, from_file, f"in {file}")
    for text in overrides:
        _overlay(tree, _parse_override(text), "on the command line")
    recipe = _validate(tree)
    check_recipe(recipe)
    return recipe


def given_keys(*, file: Path | None, overrides: Iterable[str] = ()) -> frozenset[str]:
    """Return every `section.key` that a recipe file or an override sets, if only to its default."""
    from_file = _read_yaml(file) if file is not None else {}
    trees = [from_file, *(_parse_override(text) for text in overrides)]
    return frozenset(key for tree in trees for key in _flatten(tree))


def recipe_from_tree(tree: Tree, overrides: Iterable[str] = ()) -> Recipe:
    """Rebuild a recipe from what `recipe_tree` gave, with `section.key=value` laid over it."""
    whole: Tree = {}
    _overlay(whole, tree, "in a stored recipe")
    for text in overrides:
        _overlay(whole, _parse_override(text), "on the command line")
    recipe = _validate(whole)
    check_recipe(recipe)
    return recipe


def recipe_tree(recipe: Any) -> Tree:
    """Return a config dataclass as plain values, ready for YAML or JSON."""
    return dataclasses.asdict(recipe)


def recipe_diff(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return `{"section.key": (default, value)}` for every value that differs from the default."""
    before, after = _flatten(recipe_tree(Recipe())), _flatten(recipe_tree(recipe))
    return {
        key: (before.get(key), after.get(key)) for key in sorted(before | after) if before.get(key) != after.get(key)
    }


# ---- overlaying ----


def _overlay(tree: Tree, new: Mapping[str, Any], source: str, into: Any = Recipe, prefix: str = "") -> None:
    """Lay `new` over `tree` in place; unknown keys are refused here, where their source is known."""
    fields = typing.get_type_hints(into)
    for key, value in new.items():
        path = f"{prefix}{key}"
        if key not in fields:
            raise ConfigError(f"unknown key {path} {source}; {_suggest(str(key), fields, prefix)}")
        section = _dataclass_of(fields[key])
        if section is None or value is None:
            _check_booleans(value, fields[key], f"{path} {source}")
            tree[key] = value
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} {source} is a section, but its value is {shown(value)}")
        below = tree.get(key)
        tree[key] = dict(below) if isinstance(below, Mapping) else {}
        _overlay(tree[key], value, source, section, f"{path}.")


def _check_booleans(value: Any, hint: Any, what: str) -> None:
    """Keep booleans and numbers apart, which pydantic takes for each other."""
    values = value if isinstance(value, list | tuple) else [value]
    if value is not None and any(isinstance(v, bool) for v in values) != (hint is bool):
        expected = "must be true or false" if hint is bool else "must not be a boolean"
        raise ConfigError(f"{what} {expected}, got {shown(value)}")


def _dataclass_of(hint: Any) -> Any:
    """Return the dataclass that a type hint names (also inside `| None`), or None."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((m for m in members if dataclasses.is_dataclass(m)), None)


def _suggest(key: str, fields: Iterable[str], prefix: str) -> str:
    fields = list(fields)
    near = difflib.get_close_matches(key, fields, 1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    elsewhere = [] if prefix else [f"{s}.{f}" for s in fields for f in _keys_of_section(s) if f == key]
    return f"did you mean {elsewhere[0]}?" if elsewhere else f"known: {', '.join(prefix + f for f in fields)}"


def _keys_of_section(section: str) -> list[str]:
    kind = _dataclass_of(typing.get_type_hints(Recipe)[section])
    return [f.name for f in dataclasses.fields(kind)]


def _parse_override(text: str) -> Tree:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {text!r} is not of the form section.key=value")
    try:
        leaf: Any = yaml.safe_load(value)
    except _YAML_ERRORS:
        raise ConfigError(f"the value of {path}, {shown(value)}, is not valid YAML; quote it") from None
    for key in reversed(path.split(".")):
        leaf = {key: leaf}
    return typing.cast(Tree, leaf)


def packaged_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _PACKAGED.glob("*.yaml"))


def _find(file: Path) -> Path:
    """Return the file of a recipe, given by path or by the name of one in the package."""
    packaged = _PACKAGED / f"{file}.yaml"
    return packaged if not file.exists() and str(file) in packaged_recipes() else file


def _read_yaml(file: Path) -> Tree:
    file = _find(file)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        named = "" if file.suffix else f"; those in the package: {', '.join(packaged_recipes())}"
        raise ConfigError(f"cannot read recipe {file}: {error.strerror}{named}") from None
    except RecursionError:
        raise ConfigError(f"recipe {file} is nested too deeply") from None
    except _YAML_ERRORS as error:
        raise ConfigError(f"recipe {file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"recipe {file} must be a mapping of sections, not {type(content).__name__}")
    return dict(content)


# ---- validation ----


def _validate(tree: Tree) -> Recipe:
    import pydantic  # not on a bare GPU machine, where recipes are made of their sections

    try:
        return pydantic.TypeAdapter(Recipe).validate_python(tree)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function", "tuple")))
        raise ConfigError(f"{path} = {shown(first['input'])}: {first['msg']}") from None


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
