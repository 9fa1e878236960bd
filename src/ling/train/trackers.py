"""Where numbers of a run go beside `metrics.jsonl`. Each needs a package of its own, which is an extra."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ling.errors import ConfigError


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step, under stable names."""
        ...

    def close(self) -> None: ...


def open_trackers(names: Sequence[str], directory: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Open what `run.track` names; ConfigError that says how to install what is missing.

    directory  of the run; its name is the run's
    settings   the resolved recipe, kept beside the numbers where there is a place for it
    """
    return [_KINDS[name](directory, settings) for name in names]


class _TensorBoard:
    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        _package("tensorboard", "tensorboard")
        writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(directory / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Service:
    """trackio and wandb, which have one interface."""

    def __init__(self, package: str, directory: Path, settings: Mapping[str, Any]) -> None:
        self._package: Any = _package(package, package)
        self._run = self._package.init(project="ling", name=directory.name, config=dict(settings))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        self._package.finish()


_KINDS: dict[str, Any] = {
    "tensorboard": _TensorBoard,
    "trackio": lambda directory, settings: _Service("trackio", directory, settings),
    "wandb": lambda directory, settings: _Service("wandb", directory, settings),
}


def _package(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"run.track {name} needs the package {name}; install it with: pip install 'ling[{extra}]'"
        ) from None
