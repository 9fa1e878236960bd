"""What the engine chooses at its start: context, cache and step sizes, who drafts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ling.config import ModelConfig
from ling.config.engine import EngineConfig
from ling.errors import CheckpointError, ConfigError
from ling.model import CausalLM
from ling.tokenizer import Tokenizer

_MEMORY, _PROCESS = Path("/proc/meminfo"), Path("/proc/self/status")
_CPU_STEP, _GPU_STEP = 512, 8192
_CPU_SHARE, _GPU_SHARE = 0.25, 0.9
"""Of free memory, for the cache, where nobody says how much."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was chosen.

    dtype  of activations, and of keys and values unless they are held as codes
    """

    max_model_len: int
    num_blocks: int
    bytes_per_block: int
    max_num_batched_tokens: int
    dtype: torch.dtype
    device: torch.device

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
    if config.batch_invariant and not model.config.num_key_value_heads:
        raise ConfigError("batch_invariant needs attention heads")
    context = model.config.max_position_embeddings
    if config.max_model_len > context:
        raise ConfigError(
            f"max_model_len {config.max_model_len} exceeds the model's context of {context}; "
            "give the model YaRN (rope_scaling in config.json or --hf-overrides), or lower it"
        )
    per_block = bytes_per_block(model.config, config, dtype)
    lookahead = config.num_speculative_tokens if draft_method(model.config, config) == "mtp" else 0
    length, blocks = _fit(config, config.max_model_len or context, lookahead, _affordable(config, per_block, device))
    return Sizes(length, blocks, per_block, _step_tokens(config, device), dtype, device)


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


def _affordable(config: EngineConfig, per_block: int, device: torch.device) -> int:
    if config.num_blocks:
        return config.num_blocks
    if config.kv_cache_gib:
        return int(config.kv_cache_gib * 2**30 / per_block)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE / per_block)
    return int(free_memory() * _CPU_SHARE / per_block)


def cache_gib_within(share: float, device: torch.device) -> float:
    """Return the GiB that a share of a GPU's memory leaves for the cache, the weights being there already.

    Raises ConfigError for what is no share, or where nothing is left.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"gpu_memory_utilization must lie in (0, 1], got {share:g}")
    free, total = torch.cuda.mem_get_info(device)
    left = free - (1 - share) * total
    if left <= 0:
        raise ConfigError(
            f"gpu_memory_utilization {share:g} leaves no memory for the cache: of {total / 2**30:.1f} GiB "
            f"{(total - free) / 2**30:.1f} are in use"
        )
    return left / 2**30


def _fit(config: EngineConfig, length: int, lookahead: int, affordable: int) -> tuple[int, int]:
    """Return the longest sequence and the number of blocks."""

    def needed(tokens: int) -> int:
        return -(-(tokens + lookahead) // config.block_size)

    if needed(length) > affordable:
        longest = affordable * config.block_size - lookahead
        if config.max_model_len or longest < 1:
            raise ConfigError(
                f"a sequence of {length} tokens needs {needed(length)} blocks of the cache, which holds {affordable}; "
                "give it more memory (kv_cache_gib, num_blocks) or lower max_model_len"
            )
        length = longest
    if config.num_blocks:
        return length, config.num_blocks
    return length, min(affordable, config.max_num_seqs * needed(length))


def _step_tokens(config: EngineConfig, device: torch.device) -> int:
    chosen = config.max_num_batched_tokens or (_GPU_STEP if device.type == "cuda" else _CPU_STEP)
    return max(chosen, config.max_num_seqs * (1 + config.num_speculative_tokens))


def free_memory() -> int:
    """Return the bytes that this machine can still give, if the files that this process has mapped stay in memory.

    The system counts their pages as available; but weights among them are read for every token.
    """
    available = _kib(_MEMORY, "MemAvailable")
    if available is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    mapped, locked = (_kib(_PROCESS, name) or 0 for name in ("RssFile", "VmLck"))  # no locked page is called available
    return max(0, available - max(0, mapped - locked)) * 1024


def _kib(file: Path, name: str) -> int | None:
    """Return what a line of a file like /proc/meminfo says, in KiB; None where it says nothing."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
    except (OSError, ValueError, IndexError):
        return None
