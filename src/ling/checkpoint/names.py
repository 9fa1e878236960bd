"""The one key table: which published tensor fills which part of which model tensor (spec: checkpoint.md 1, 3).

Model names are published names. The only transformation is that routed experts are stacked:

    model.layers.3.mlp.experts.7.gate_proj.weight  ->  ...experts.gate_up_proj[7, :F]
    model.layers.3.mlp.experts.7.up_proj.weight    ->  ...experts.gate_up_proj[7, F:]
    model.layers.3.mlp.experts.7.down_proj.weight  ->  ...experts.down_proj[7]
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ling.config import ModelConfig
from ling.errors import CheckpointError
from ling.ops.fp8 import num_blocks
from ling.ops.packed import num_tiles

SCALE_SUFFIX = "_scale_inv"
_MOST_TENSORS = 500_000
"""Ling-1T has 62,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One published tensor."""

    key: str
    """Published name."""
    shape: tuple[int, ...]
    parameter: str
    """Name in `CausalLM.state_dict()`."""
    expert: int | None = None
    """Index into a stacked parameter's first dim; None: the parameter is not stacked."""
    rows: tuple[int, int] | None = None
    """Half-open range of the (expert's) rows that this tensor fills; None: all."""
    quantized: bool = False
    """Whether FP8 checkpoints hold it as codes and block scales."""
    power_of_two_scale: bool = False
    """Whether the published FP8 export rounds its scales up to powers of two."""
    float32: bool = False
    """Whether it is float32 in every checkpoint."""

    @property
    def layer(self) -> int:
        """Number of its layer, MTP layers included; -1 outside of layers."""
        parts = self.key.split(".")
        return int(parts[2]) if self.key.startswith("model.layers.") else -1

    @property
    def scale_key(self) -> str:
        return self.key + SCALE_SUFFIX

    @property
    def scale_shape(self) -> tuple[int, int]:
        return num_blocks(self.shape[0]), num_blocks(self.shape[1])

    @property
    def scale_parameter(self) -> str:
        return self.parameter + SCALE_SUFFIX

    @property
    def scale_rows(self) -> tuple[int, int] | None:
        """Range of the scale grid's rows: gate and up keep a grid each, whatever F is."""
        if self.rows is None:
            return None
        start = num_blocks(self.rows[1] - self.rows[0]) if self.rows[0] else 0
        return start, start + self.scale_shape[0]

    @property
    def tiles(self) -> tuple[int, int] | None:
        """Range of the tiles of a packed weight: gate and up begin with a tile each."""
        if self.rows is None:
            return None
        count = num_tiles(self.shape[0])
        return (count, 2 * count) if self.rows[0] else (0, count)

    def part_of_tiles(self, packed: Tensor) -> Tensor:
        """Return the view of a packed weight's codes or scales that this piece fills."""
        return _view(packed, self.expert, self.tiles)

    def part_of(self, parameter: Tensor) -> Tensor:
        """Return the view of the model tensor that this piece fills."""
        return _view(parameter, self.expert, self.rows)

    def part_of_scale(self, scale: Tensor) -> Tensor:
        """Return the view of the model's scale tensor that belongs to this piece."""
        return _view(scale, self.expert, self.scale_rows)


def published_pieces(model: ModelConfig) -> list[Piece]:
    """List every tensor of a checkpoint of `model`, layer by layer; a tied head is not stored.

    Raises CheckpointError if there would be absurdly many: a configuration is only a claim.
    """
    if (count := model.num_stored_layers * (16 + 3 * model.num_experts)) > _MOST_TENSORS:
        raise CheckpointError(
            f"the configuration describes about {count:,} tensors ({model.num_stored_layers} layers of "
            f"{model.num_experts} experts); no checkpoint has more than {_MOST_TENSORS:,}"
        )
    H, V = model.hidden_size, model.vocab_size
    pieces = [_plain("model.word_embeddings.weight", V, H)]
    for layer in range(model.num_stored_layers):
        pieces += _layer(model, layer)
    pieces.append(_plain("model.norm.weight", H))
    if not model.tie_word_embeddings:
        pieces.append(_plain("lm_head.weight", V, H))
    return pieces


def may_be_ignored(key: str, model: ModelConfig) -> str | None:
    """Return why a stored tensor without a place may be left out, or None if it may not.

    The whole list: value heads of reward models, stored rotary tables, MTP layers that the configuration lacks.
    """
    if "v_head" in key:
        return "value head"
    if key.endswith("inv_freq"):
        return "rotary table"
    parts = key.split(".")
    if key.startswith("model.layers.") and parts[2].isdigit() and int(parts[2]) >= model.num_stored_layers:
        return f"MTP layer, but num_nextn_predict_layers is {model.num_nextn_predict_layers}"
    return None


def _view(tensor: Tensor, expert: int | None, rows: tuple[int, int] | None) -> Tensor:
    part = tensor if expert is None else tensor[expert]
    return part if rows is None else part[rows[0] : rows[1]]


def _plain(key: str, *shape: int) -> Piece:
    return Piece(key=key, parameter=key, shape=shape)


def _matrix(key: str, rows: int, columns: int, *, power_of_two_scale: bool = False) -> Piece:
    return Piece(key=key, parameter=key, shape=(rows, columns), quantized=True, power_of_two_scale=power_of_two_scale)


def _layer(model: ModelConfig, layer: int) -> Iterator[Piece]:
    prefix = f"model.layers.{layer}."
    H, D = model.hidden_size, model.head_dim
    if layer >= model.num_hidden_layers:
        for norm in ("enorm", "hnorm"):
            yield _plain(f"{prefix}{norm}.weight", H)
        yield _plain(f"{prefix}eh_proj.weight", H, 2 * H)
    yield _plain(f"{prefix}input_layernorm.weight", H)
    yield _matrix(f"{prefix}attention.query_key_value.weight", model.qkv_dim, H)
    if model.use_qkv_bias:
        yield _plain(f"{prefix}attention.query_key_value.bias", model.qkv_dim)
    if model.use_qk_norm:
        yield _plain(f"{prefix}attention.query_layernorm.weight", D)
        yield _plain(f"{prefix}attention.key_layernorm.weight", D)
    q_dim = model.num_attention_heads * D
    yield _matrix(f"{prefix}attention.dense.weight", H, q_dim, power_of_two_scale=True)
    if model.use_bias:
        yield _plain(f"{prefix}attention.dense.bias", H)
    yield _plain(f"{prefix}post_attention_layernorm.weight", H)
    if model.is_moe(layer):
        yield from _moe(model, f"{prefix}mlp.")
    else:
        yield from _mlp(f"{prefix}mlp.", H, model.intermediate_size)
    if layer >= model.num_hidden_layers:
        yield _plain(f"{prefix}final_layernorm.weight", H)


def _mlp(prefix: str, H: int, width: int) -> Iterator[Piece]:
    yield _matrix(f"{prefix}gate_proj.weight", width, H)
    yield _matrix(f"{prefix}up_proj.weight", width, H)
    yield _matrix(f"{prefix}down_proj.weight", H, width)


def _moe(model: ModelConfig, prefix: str) -> Iterator[Piece]:
    E, F, H = model.num_experts, model.moe_intermediate_size, model.hidden_size
    yield _plain(f"{prefix}gate.weight", E, H)
    if model.moe_router_enable_expert_bias:
        key = f"{prefix}gate.expert_bias"
        yield Piece(key=key, parameter=key, shape=(E,), float32=True)
    for e in range(E):
        for name, parameter, rows, shape in (
            ("gate_proj", "gate_up_proj", (0, F), (F, H)),
            ("up_proj", "gate_up_proj", (F, 2 * F), (F, H)),
            ("down_proj", "down_proj", None, (H, F)),
        ):
            yield Piece(
                key=f"{prefix}experts.{e}.{name}.weight", parameter=f"{prefix}experts.{parameter}",
                shape=shape, expert=e, rows=rows, quantized=True, power_of_two_scale=name != "down_proj",
            )  # fmt: skip
    if model.shared_expert_dim:
        yield from _mlp(f"{prefix}shared_experts.", H, model.shared_expert_dim)
