"""ling: the Ling 2.0 system (sparse MoE model, training, conversion, evaluation, serving) in one package."""

import importlib
from typing import TYPE_CHECKING, Any

from ling.compat.registration import register_with_transformers
from ling.version import __version__

if TYPE_CHECKING:
    from ling.engine.llm import LLM
    from ling.engine.request import SamplingParams, StructuredOutputsParams

__all__ = ["LLM", "SamplingParams", "StructuredOutputsParams", "__version__"]

_LAZY = {
    "LLM": "ling.engine.llm",
    "SamplingParams": "ling.engine.request",
    "StructuredOutputsParams": "ling.engine.request",
}
"""Imported when first asked for: `import ling` does not import torch."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module ling has no attribute {name}")


register_with_transformers()
