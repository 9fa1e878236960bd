"""How the engine runs: limits, cache, speculation. What a person asks of one answer is `SamplingParams`."""

from dataclasses import dataclass
from typing import Literal, get_args

from ling.errors import ConfigError

CacheDtype = Literal["auto", "bfloat16", "float16", "fp8"]
Drafting = Literal["auto", "mtp", "ngram", "none"]

_WHOLE = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_queued", "block_size", "num_blocks",
          "num_speculative_tokens", "seed")  # fmt: skip
MOST_DRAFTS = 16
"""Hardly a token so far ahead is accepted, and each costs a row of the verification."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits and choices of one engine. Zero means: choose at the start, and say what was chosen."""

    max_model_len: int = 0
    """Longest prompt and answer together, in tokens; 0: the model's context, or what the cache holds."""
    max_num_seqs: int = 64
    """Most answers that run at once."""
    max_num_batched_tokens: int = 0
    """Most tokens of one step; longer prompts are cut into chunks. 0: 512 on a CPU, 8192 on a GPU."""
    max_num_queued: int = 1024
    """Most requests that wait; further ones are refused."""
    block_size: int = 16
    """Tokens per block of the cache."""
    num_blocks: int = 0
    """Blocks in the cache; 0: as many as `kv_cache_gib` holds."""
    kv_cache_gib: float = 0.0
    """Memory of keys and values in GiB; 0: a share of what is free, at most what `max_num_seqs` can use."""
    kv_cache_dtype: CacheDtype = "auto"
    """`auto`: what activations are; `fp8`: E4M3 with one scale per token and head. All but `auto` are rounded to."""
    enable_prefix_caching: bool = True
    """Keep finished blocks and give them to requests that begin alike."""
    drafting: Drafting = "auto"
    """Who proposes tokens: the MTP layer, a search in the text so far, nobody; `auto`: MTP where there is one."""
    num_speculative_tokens: int = 3
    """Most tokens proposed per step; how many, down to none, is decided each step from measured times."""
    max_drafting_seqs: int = 2
    """With more answers running nothing is drafted, unless `adaptive_drafts` is off: batches fill the device anyway."""
    adaptive_drafts: bool = True
    """False: always propose `num_speculative_tokens`."""
    head_shortlist: bool = True
    """On a CPU with a large head of int8: look at 4 bits of each weight first where a choice is greedy, by temperature
    alone or of a top-k, and read whole only what it can still fall on. Takes half the head's bytes once more."""
    batch_invariant: bool = False
    """Same bits for a request whatever runs beside it; costs speed where kernels are a library's."""
    seed: int = 0
    """From which requests without a seed of their own get one."""

    def __post_init__(self) -> None:
        for name in _WHOLE:
            if type(value := getattr(self, name)) is not int:
                raise ConfigError(f"{name} must be a whole number, got {value}")
        for name, choices in (("kv_cache_dtype", get_args(CacheDtype)), ("drafting", get_args(Drafting))):
            if (chosen := getattr(self, name)) not in choices:
                raise ConfigError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {chosen}")
        for name in ("max_num_seqs", "max_num_queued", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_model_len", "max_num_batched_tokens", "num_blocks", "kv_cache_gib"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.kv_cache_gib == float("inf"):
            raise ConfigError("kv_cache_gib must be finite, got inf")
        if not 0 <= self.num_speculative_tokens <= MOST_DRAFTS:
            raise ConfigError(
                f"num_speculative_tokens must lie between 0 and {MOST_DRAFTS}, got {self.num_speculative_tokens}"
            )
        needed = self.max_num_seqs * (1 + self.num_speculative_tokens)
        if 0 < self.max_num_batched_tokens < needed:
            raise ConfigError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is too few for max_num_seqs {self.max_num_seqs} "
                f"with {self.num_speculative_tokens} drafts each; raise it to {needed}, or lower those"
            )
