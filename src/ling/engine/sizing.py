"""What the engine chooses at its start: context, cache and step sizes, who drafts."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch

from ling.config import ModelConfig
from ling.config.engine import CacheDtype, EngineConfig
from ling.engine.memory import free_on
from ling.errors import CheckpointError, ConfigError
from ling.model import CausalLM
from ling.tokenizer import Tokenizer

_CPU_STEP, _GPU_STEP = 512, 8192
_CPU_SHARE, _GPU_SHARE = 0.25, 0.9
"""Of free memory, for the cache, where nobody says how much."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was chosen.

    dtype    of activations, and of keys and values unless they are held as codes
    lowered  what the context was lowered from, and what would hold it; empty: nothing was lowered
    """

    max_model_len: int
    num_blocks: int
    bytes_per_block: int
    max_num_batched_tokens: int
    dtype: torch.dtype
    device: torch.device
    lowered: str = ""

    @property
    def cache_gib(self) -> float:
        return self.num_blocks * self.bytes_per_block / 2**30


def choose_sizes(model: CausalLM, tokenizer: Tokenizer, config: EngineConfig) -> Sizes:
    """Settle every size that was left open. Raises ConfigError where what was asked does not fit together."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {model.config.vocab_size}: "
            "they do not belong together"
        )
    embedding = model.model.word_embeddings.weight
    dtype, device = model.computes_in or embedding.dtype, embedding.device
    return sizes_of(model.config, config, dtype, device)


def sizes_of(
    model: ModelConfig,
    config: EngineConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    weight_bytes: int = 0,
) -> Sizes:
    """Settle sizes from descriptions alone, so that what does not fit is refused before weights are loaded.

    dtype         of activations
    weight_bytes  that the weights have yet to take of the memory that is free
    """
    if config.batch_invariant and not model.num_key_value_heads:
        raise ConfigError("batch_invariant needs attention heads")
    context = model.max_position_embeddings
    if config.max_model_len > context:
        raise ConfigError(
            f"max_model_len {config.max_model_len} exceeds the model's context of {context}; "
            "give the model YaRN (rope_scaling in config.json or --hf-overrides), or lower it"
        )
    wanted = config.max_model_len or context
    lookahead = config.num_speculative_tokens if draft_method(model, config) == "mtp" else 0
    per_block = bytes_per_block(model, config, dtype)
    needed = -(-(wanted + lookahead) // config.block_size)
    free = None if config.num_blocks or config.kv_cache_gib else max(0, free_on(device) - weight_bytes)
    blocks, why = _affordable(config, per_block, device, free)
    length, lowered = wanted, ""
    if needed > blocks:
        length = blocks * config.block_size - lookahead
        would = " or ".join(_who_would_hold(model, config, dtype, needed, blocks * per_block, free))
        if config.max_model_len or length < 1:
            weights = f" beside {weight_bytes / 2**30:.3g} GiB of weights" if weight_bytes and free is not None else ""
            raise ConfigError(
                f"a context of {wanted:,} tokens needs {needed} blocks of the cache ({needed * per_block / 2**30:.3g} "
                f"GiB), and {why} is {blocks}{weights}; lower max_model_len{', or give ' * bool(would)}{would}"
            )
        lowered = f"lowered from {wanted:,}: the cache holds no more" + f"; {would} would" * bool(would)
    elif not config.num_blocks:
        blocks = min(blocks, config.max_num_seqs * needed)
    return Sizes(length, blocks, per_block, _step_tokens(config, device), dtype, device, lowered)


def _affordable(config: EngineConfig, per_block: int, device: torch.device, free: int | None) -> tuple[int, str]:
    """Return how many blocks there may be, and who says so."""
    if config.num_blocks:
        return config.num_blocks, "num_blocks"
    if free is None:
        return int(config.kv_cache_gib * 2**30 / per_block), f"kv_cache_gib {config.kv_cache_gib:g}"
    share = _GPU_SHARE if device.type == "cuda" else _CPU_SHARE
    return int(free * share / per_block), f"{share:.0%} of the memory that is free"


def _who_would_hold(
    model: ModelConfig, config: EngineConfig, dtype: torch.dtype, blocks: int, cache_bytes: int, free: int | None
) -> list[str]:
    """Name the settings of which each alone would give a cache of so many blocks.

    cache_bytes  that the cache may have as things are
    free         bytes that a larger one may have; None: any number
    """
    if config.num_blocks:
        return [f"num_blocks {blocks}"]
    found: list[str] = []
    now = held_dtype(config, dtype).itemsize
    smaller: tuple[CacheDtype, ...] = ("float16", "fp8")
    for kind in smaller:
        other = dataclasses.replace(config, kv_cache_dtype=kind)
        fits = blocks * bytes_per_block(model, other, dtype) <= cache_bytes
        if not found and fits and held_dtype(other, dtype).itemsize < now:
            found.append(f"kv_cache_dtype {kind}")
    gib = math.ceil(blocks * bytes_per_block(model, config, dtype) / 2**30 * 1000) / 1000
    return [*found, f"kv_cache_gib {gib:g}"] if free is None or gib * 2**30 <= free else found


def bytes_per_block(model: ModelConfig, config: EngineConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one block over all stored layers."""
    held = held_dtype(config, dtype)
    per_head = model.head_dim * held.itemsize + (4 if held == torch.float8_e4m3fn else 0)
    return 2 * model.num_stored_layers * config.block_size * model.num_key_value_heads * per_head


def held_dtype(config: EngineConfig, dtype: torch.dtype) -> torch.dtype:
    """Return what keys and values of activations in `dtype` are held as."""
    return {"auto": dtype, "float16": torch.float16, "bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[
        config.kv_cache_dtype
    ]


def draft_method(model: ModelConfig, config: EngineConfig) -> Literal["mtp", "ngram", "none"]:
    """Return who drafts. Raises ConfigError if MTP is demanded of a model without it."""
    has_mtp = model.num_nextn_predict_layers > 0
    if config.drafting == "mtp" and not has_mtp:
        raise ConfigError("this checkpoint has no MTP layer to draft with; use ngram or none")
    if not config.num_speculative_tokens or config.drafting == "none":
        return "none"
    if config.drafting == "auto":
        return "mtp" if has_mtp else "none"
    return config.drafting


def _step_tokens(config: EngineConfig, device: torch.device) -> int:
    chosen = config.max_num_batched_tokens or (_GPU_STEP if device.type == "cuda" else _CPU_STEP)
    return max(chosen, config.max_num_seqs * (1 + config.num_speculative_tokens))
