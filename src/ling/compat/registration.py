"""Makes transformers' Auto classes know Ling once both are imported, in either order, without importing either early.

`import ling` must not pull transformers in, and transformers loads its parts when they are first used. So a finder
at the head of `sys.meta_path` waits for the two modules that hold the Auto registries and registers right after each
has run. They may run in the middle of modules that our classes are built on; then those are waited for as well.
A class that transformers has of its own under the name is left alone.
"""

import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

logger = logging.getLogger(__name__)


def register_with_transformers() -> None:
    """Register `LingConfig` and `LingForCausalLM` now, or when transformers loads its Auto classes."""
    if not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        waiting = _Waiting()
        sys.meta_path.insert(0, waiting)
        waiting.register()


def _register_config(auto: ModuleType) -> None:
    from ling.compat.hf.configuration import LingConfig

    if LingConfig.model_type in auto.CONFIG_MAPPING:
        logger.info("transformers has a class for %s already: Ling's is not registered", LingConfig.model_type)
    else:
        auto.AutoConfig.register(LingConfig.model_type, LingConfig)


def _register_model(auto: ModuleType) -> None:
    from ling.compat.hf.configuration import LingConfig
    from ling.compat.hf.modeling import LingForCausalLM

    auto.AutoModelForCausalLM.register(LingConfig, LingForCausalLM, exist_ok=True)


@dataclass
class _Registry:
    name: str
    """Module that holds it."""
    needs: tuple[str, ...]
    """Modules that must not be half loaded when our class is imported."""
    register: Callable[[ModuleType], None]
    done: bool = False


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds the modules it waits for as everyone else does, and has them run by `_ThenRegister`."""

    def __init__(self) -> None:
        config = ("transformers.configuration_utils", "ling.compat.hf.configuration")
        model = (
            "transformers.cache_utils", "transformers.generation.utils", "transformers.modeling_utils",
            "ling.compat.hf.modeling",
        )  # fmt: skip
        self.registries = (
            _Registry("transformers.models.auto.configuration_auto", config, _register_config),
            _Registry("transformers.models.auto.modeling_auto", (*config, *model), _register_model),
        )
        self.names = {name for r in self.registries for name in (r.name, *r.needs)}
        self.loaded: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec

    def register(self) -> None:
        """Register where the registry is there and nothing that the class needs is half loaded."""
        for registry in self.registries:
            if registry.done or registry.name not in sys.modules or self._loading(registry.name, *registry.needs):
                continue
            registry.done = True
            try:
                registry.register(sys.modules[registry.name])
            except ImportError as error:
                logger.warning("Ling's classes are not known to transformers' Auto classes: %s", error)

    def _loading(self, *names: str) -> bool:
        specs = [getattr(sys.modules.get(name), "__spec__", None) for name in names if name not in self.loaded]
        return any(getattr(spec, "_initializing", False) for spec in specs)


class _ThenRegister(importlib.abc.Loader):
    """Runs a module by its own loader, then registers what can be."""

    def __init__(self, loader: importlib.abc.Loader, waiting: _Waiting) -> None:
        self._loader = loader
        self._waiting = waiting

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # inspect and linecache ask loaders for source

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._waiting.loaded.add(module.__name__)
        self._waiting.register()
