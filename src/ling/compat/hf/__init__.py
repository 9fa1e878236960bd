"""Ling 2.0 as a transformers model: `LingConfig` and `LingForCausalLM` on top of `ling.model`."""

from ling.compat.hf.configuration import LingConfig

__all__ = ["LingConfig"]
