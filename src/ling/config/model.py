"""What a person decides about a network, in the published field names. Derived values are properties.

The published keys that engines silently misread (`rotary_dim` against `partial_rotary_factor`, `n_group` 0,
both YaRN spellings, ...) are resolved in `config/published.py`; here they have one meaning each.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ling.config.fields import check_fields
from ling.errors import ConfigError

DType = Literal["float32", "bfloat16"]

ODD_HEAD_DIM = "model.head_dim must be even (rotation pairs channels), got {}"
"""Some converted checkpoints have one and rotate part of it; recipes make no such networks (config/checks.py)."""
_MAX_LAYERS = 10**5
_MAX_SIZE = 10**9
"""No dimension, and no stretch of the context, is meant beyond this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context (spec: model.md 5)."""

    type: Literal["linear", "yarn"]
    factor: float
    """Ratio of the new context to the trained one; used exactly as written."""
    original_max_position_embeddings: int | None = None
    """Trained context P (yarn only)."""
    beta_fast: float = 32.0
    """Rotations over P from which a frequency is left alone."""
    beta_slow: float = 1.0
    """Rotations over P up to which a frequency is fully interpolated."""
    attention_factor: float | None = None
    """Multiplies cos and sin; None: derived from `factor` (or the mscale pair)."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Round the ramp's ends to whole frequencies."""

    def __post_init__(self) -> None:
        check_fields(self, "model.rope_scaling")
        if not 1 <= self.factor <= _MAX_SIZE:
            raise ConfigError(f"model.rope_scaling.factor must be at least 1 (and at most 1e9), got {self.factor}")
        if self.type == "yarn" and self.original_max_position_embeddings is None:
            raise ConfigError("model.rope_scaling of type yarn needs original_max_position_embeddings")
        for name in ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= _MAX_SIZE:
                raise ConfigError(f"model.rope_scaling.{name} must be positive (and at most 1e9), got {value}")
        for name in ("mscale", "mscale_all_dim"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"model.rope_scaling.{name} must not be negative, got {getattr(self, name)}")
        if self.beta_fast < self.beta_slow:
            raise ConfigError(
                f"model.rope_scaling.beta_fast {self.beta_fast} must not be below beta_slow {self.beta_slow}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Ling 2.0 network (BailingMoeV2); with `first_k_dense_replace == num_hidden_layers` a dense one.

    Defaults are those of the published configuration class (spec: model.md 2).
    """

    vocab_size: int = 157184
    """V, rows of embedding and head."""
    hidden_size: int = 2048
    """H."""
    num_hidden_layers: int = 20
    """L, without the MTP layers."""
    intermediate_size: int = 5120
    """Width of the dense feed-forward layers."""
    first_k_dense_replace: int = 1
    """Number of leading layers with a dense feed-forward instead of experts."""

    num_attention_heads: int = 16
    """A, query heads."""
    num_key_value_heads: int = 4
    """K, key-value heads; query heads are shared out contiguously."""
    head_dim: int = 128
    """D."""
    use_qk_norm: bool = True
    """RMSNorm over each query and key head, before the rotation."""
    use_qkv_bias: bool = False
    use_bias: bool = False
    """Bias on the attention output projection."""

    num_experts: int = 256
    """E, routed experts per sparse layer; 0 only if all layers are dense."""
    num_experts_per_tok: int = 8
    """k."""
    moe_intermediate_size: int = 512
    """F, width of one routed expert."""
    num_shared_experts: int = 1
    """Multiplier of the shared expert's width; 0 leaves it out."""
    moe_shared_expert_intermediate_size: int | None = None
    """Width of one shared expert; None: as `moe_intermediate_size`."""
    n_group: int = 8
    """Groups the experts are divided into for the choice; 0: no groups."""
    topk_group: int = 4
    """Groups a token may choose from; 0 exactly when `n_group` is 0."""
    routed_scaling_factor: float = 1.0
    """Multiplies the mixing weights after they are normalised."""
    moe_router_enable_expert_bias: bool = True
    """Whether the choice is steered by a per-expert bias (auxiliary-loss-free balancing)."""

    max_position_embeddings: int = 32768
    """Context length in tokens."""
    rope_theta: float = 600000.0
    rotary_dim: int | None = None
    """Channels of each head that are rotated; None: all. Published as `partial_rotary_factor` too."""
    rope_scaling: RopeScaling | None = None

    num_nextn_predict_layers: int = 0
    """MTP layers (multi-token prediction), stored as layers L, L+1, ..."""
    mtp_loss_scaling_factor: float = 0.0
    """Weight of the summed MTP losses; the published recipes train with 0.1."""

    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    pad_token_id: int | None = 156892
    """Row of the embedding that stays zero and gets no gradient, but from a tied head."""
    eos_token_id: int | tuple[int, ...] | None = 156892
    torch_dtype: DType = "bfloat16"
    """Dtype the weights are published in."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        self._check_sizes()
        self._check_limits()
        self._check_attention()
        if self.num_moe_layers or self.num_nextn_predict_layers:
            self._check_experts()

    # ---- derived ----

    @property
    def rotated_dim(self) -> int:
        """r, channels of a head that are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def qkv_dim(self) -> int:
        """Rows of the fused projection: A query, K key and K value heads."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def shared_expert_dim(self) -> int:
        """Width of the shared expert; 0 if there is none."""
        width = self.moe_shared_expert_intermediate_size or self.moe_intermediate_size
        return width * self.num_shared_experts

    @property
    def num_moe_layers(self) -> int:
        """Sparse layers, without MTP."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def num_stored_layers(self) -> int:
        """Layers with weights and a cache of their own: L and the MTP layers."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def is_moe(self, layer: int) -> bool:
        """Whether stored layer `layer` holds experts; MTP layers always do."""
        return layer >= self.first_k_dense_replace

    def without_mtp(self) -> "ModelConfig":
        """Return the same network without its MTP layers."""
        return dataclasses.replace(self, num_nextn_predict_layers=0)

    # ---- checks ----

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "max_position_embeddings", "rope_theta", "rms_norm_eps",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"model.{name} must be positive, got {getattr(self, name)}")
        for name in (
            "intermediate_size", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "num_shared_experts",
            "moe_shared_expert_intermediate_size", "n_group", "topk_group", "num_nextn_predict_layers",
            "mtp_loss_scaling_factor", "initializer_range",
        ):  # fmt: skip
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"model.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.first_k_dense_replace <= self.num_hidden_layers:
            raise ConfigError(
                f"model.first_k_dense_replace {self.first_k_dense_replace} must lie between 0 and "
                f"num_hidden_layers {self.num_hidden_layers}"
            )
        if self.first_k_dense_replace and self.intermediate_size <= 0:
            raise ConfigError(f"model.intermediate_size must be positive, got {self.intermediate_size}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"model.pad_token_id {self.pad_token_id} is no row of a vocabulary of {self.vocab_size}; "
                "set it to an id below vocab_size or to null"
            )
        for token_id in self.eos_token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise ConfigError(
                    f"model.eos_token_id {token_id} is no row of a vocabulary of {self.vocab_size}; "
                    "set it to an id below vocab_size or to null"
                )

    def _check_limits(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            limit = _MAX_LAYERS if field.name in ("num_hidden_layers", "num_nextn_predict_layers") else _MAX_SIZE
            if field.type is not float and isinstance(value, int) and value > limit:
                raise ConfigError(f"model.{field.name} must be at most {limit}, got {value}")

    def _check_attention(self) -> None:
        A, K, D, r = self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.rotated_dim
        if A % K:
            raise ConfigError(f"model.num_key_value_heads {K} does not divide num_attention_heads {A}")
        if D % 2 and self.rotary_dim is None:
            raise ConfigError(ODD_HEAD_DIM.format(D))
        if r > D:
            raise ConfigError(f"model.rotary_dim {r} is larger than head_dim {D}")
        if r <= 0 or r % 2:
            raise ConfigError(f"model.rotary_dim must be positive and even, got {r}")
        if self.rope_theta <= 1:
            raise ConfigError(f"model.rope_theta must be greater than 1, got {self.rope_theta}")

    def _check_experts(self) -> None:
        E, k, G, kept = self.num_experts, self.num_experts_per_tok, self.n_group, self.topk_group
        if E <= 0 or self.moe_intermediate_size <= 0:
            raise ConfigError(
                f"model has sparse layers, so num_experts ({E}) and moe_intermediate_size "
                f"({self.moe_intermediate_size}) must be positive; for a dense model set "
                "first_k_dense_replace to num_hidden_layers and num_nextn_predict_layers to 0"
            )
        if not 1 <= k <= E:
            raise ConfigError(f"model.num_experts_per_tok {k} must lie between 1 and num_experts {E}")
        if (G == 0) != (kept == 0):
            raise ConfigError(f"model.n_group {G} and topk_group {kept} must both be 0 (no groups) or neither")
        if G == 0:
            return
        if E % G:
            raise ConfigError(f"model.n_group {G} does not divide num_experts {E}")
        if E // G < 2:
            raise ConfigError(f"model.n_group {G} leaves {E // G} expert per group; a group is scored by its two best")
        if kept > G:
            raise ConfigError(f"model.topk_group {kept} is larger than n_group {G}")
        if k > kept * (E // G):
            raise ConfigError(
                f"model.num_experts_per_tok {k} is more than the {kept} chosen groups hold "
                f"({kept} x {E // G} experts); lower it or raise topk_group"
            )
