"""Ling 2.0 as a transformers model: `LingConfig` and `LingForCausalLM` on top of `ling.model`.

Names are loaded when they are asked for: transformers' registries need the configuration at a moment when the
modules that a model is built on may be half loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ling.compat.hf.configuration import LingConfig
    from ling.compat.hf.modeling import LingForCausalLM
    from ling.compat.hf.remote_code import write_remote_code

__all__ = ["LingConfig", "LingForCausalLM", "write_remote_code"]

_HOMES = {"LingConfig": "configuration", "LingForCausalLM": "modeling", "write_remote_code": "remote_code"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
