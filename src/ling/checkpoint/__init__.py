"""Checkpoints in and out: one key table, strict loading, atomic writing. Nothing here executes what it reads."""

from ling.checkpoint.load import load_model, read_config
from ling.checkpoint.save import save_model

__all__ = ["load_model", "read_config", "save_model"]
