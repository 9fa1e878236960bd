"""transformers' side: its class glm4_moe, which is built as Ling-mini is, with random weights; one answer at a time.

MODEL is a directory whose config.json gives the shape. Experts run through grouped GEMMs, the default.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.cpu_race.side import Answer, by_steps
from benchmarks.glm4_moe import stand_in
from ling.checkpoint.source import read_json
from ling.config import read_published


def start(model: str, *, threads: int, vocabulary: int, dtype: str, **_: Any) -> tuple[dict[str, Any], Answer]:
    torch.set_num_threads(threads)
    config = read_published(read_json(Path(model, "config.json")))
    peer = transformers.AutoModelForCausalLM.from_config(
        stand_in(config), attn_implementation="sdpa", dtype=getattr(torch, dtype)
    ).eval()
    return {"version": transformers.__version__, "engine": ["glm4_moe", dtype]}, by_steps(_Steps(peer), vocabulary)


class _Steps:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._name = ""
        self._next: Tensor | None = None
        self._cache: Any = None

    def add(self, name: str, ids: list[int], *, known: bool) -> None:
        self._name, self._next, self._cache = name, torch.tensor([ids]), transformers.DynamicCache()

    @torch.inference_mode()
    def step(self) -> Collection[str]:
        out = self._model(self._next, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._next = out.logits[:, -1:].argmax(-1)
        return [self._name]

    def drop(self, names: list[str]) -> None:
        self._next = self._cache = None
