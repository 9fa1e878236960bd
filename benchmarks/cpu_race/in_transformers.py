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
from ling.checkpoint.source import read_json
from ling.config import ModelConfig, read_published


def start(model: str, *, threads: int, vocabulary: int, dtype: str, **_: Any) -> tuple[dict[str, Any], Answer]:
    torch.set_num_threads(threads)
    config = read_published(read_json(Path(model, "config.json")))
    peer = transformers.AutoModelForCausalLM.from_config(
        stand_in(config), attn_implementation="sdpa", dtype=getattr(torch, dtype)
    ).eval()
    return {"version": transformers.__version__, "engine": ["glm4_moe", dtype]}, by_steps(_Steps(peer), vocabulary)


def stand_in(c: ModelConfig) -> Any:
    return transformers.AutoConfig.for_model(
        "glm4_moe", vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
        intermediate_size=c.intermediate_size, first_k_dense_replace=c.first_k_dense_replace,
        num_attention_heads=c.num_attention_heads, num_key_value_heads=c.num_key_value_heads, head_dim=c.head_dim,
        n_routed_experts=c.num_experts, num_experts_per_tok=c.num_experts_per_tok, n_shared_experts=1,
        moe_intermediate_size=c.moe_intermediate_size, n_group=c.n_group, topk_group=c.topk_group,
        routed_scaling_factor=c.routed_scaling_factor, norm_topk_prob=True, use_qk_norm=True, attention_bias=False,
        rms_norm_eps=c.rms_norm_eps, max_position_embeddings=c.max_position_embeddings, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta, "partial_rotary_factor": 0.5},
        initializer_range=c.initializer_range, pad_token_id=None, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip


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
