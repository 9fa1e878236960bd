"""Where published tensors lie in distributed checkpoints, which hold experts stacked (spec: checkpoint.md 4).

A layout gives each `Piece` its place in a larger tensor. Both directions of every conversion use the same places, so
what one writes the other reads.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ling.checkpoint.names import Piece
from ling.config import ModelConfig
from ling.errors import CheckpointError

_MOST_ROWS = 2**22
"""Ling-1T has 10,240."""
MODEL_PREFIX = "model/"
"""Of the model's tensors in our training checkpoints."""

NOT_WEIGHTS = ("optimizer", "_extra_state", "rng_state", "chained_0", "rerun_state_machine_state", "inv_freq")
"""Parts of names under which Megatron's checkpoints hold something else than weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Part of a tensor in a distributed checkpoint."""

    key: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    expert: int | None = None
    rows: tuple[int, int] | None = None
    row_order: Tensor | None = None
    """Row of the stored tensor that each row of the piece comes from; None: the same order."""

    def get(self, whole: Tensor) -> Tensor:
        """Return the piece's values out of the stored tensor."""
        part = self._view(whole)
        return part if self.row_order is None else part[self.row_order]

    def put(self, whole: Tensor, values: Tensor) -> None:
        """Copy the piece's values to where they belong in the stored tensor."""
        part = self._view(whole)
        if self.row_order is None:
            part.copy_(values)
        else:
            part[self.row_order] = values.to(part.dtype)

    def _view(self, whole: Tensor) -> Tensor:
        part = whole if self.expert is None else whole[self.expert]
        return part if self.rows is None else part[self.rows[0] : self.rows[1]]


Layout = Callable[[Piece], Place]


def training_layout(model: ModelConfig) -> Layout:
    """Return the places in `ling`'s own training checkpoints: the model's state dict."""

    def place(piece: Piece) -> Place:
        return Place(
            key=MODEL_PREFIX + piece.parameter,
            shape=_stacked_shape(piece, model),
            expert=piece.expert,
            rows=piece.rows,
        )

    return place


def megatron_layout(model: ModelConfig) -> Layout:
    """Return the places in Megatron's `torch_dist` checkpoints of this family."""

    def place(piece: Piece) -> Place:
        prefix, name, moe = _locate(piece.key, model)
        if name in _TOP:
            return Place(key=_TOP[name], shape=piece.shape)
        if name in _MTP_NORMS:
            return Place(key=prefix + name, shape=piece.shape)
        prefix += "transformer_layer." if prefix.startswith("mtp.") else ""
        if name.startswith("attention.query_key_value."):
            suffix = name.rpartition(".")[2]
            return Place(
                key=f"{prefix}self_attention.linear_qkv.{suffix}",
                shape=piece.shape,
                row_order=_query_groups_last(model),
            )
        if name == "post_attention_layernorm.weight":
            return Place(key=prefix + ("pre_mlp_layernorm.weight" if moe else _DENSE_NORM), shape=piece.shape)
        if name in _LAYER:
            return Place(key=prefix + _LAYER[name], shape=piece.shape)
        return _feed_forward_place(prefix, name, piece, model)

    return place


def _feed_forward_place(prefix: str, name: str, piece: Piece, model: ModelConfig) -> Place:
    """Place gate and up behind each other in `linear_fc1`, down in `linear_fc2`."""
    parts = name.split(".")  # mlp[.shared_experts|.experts.7].gate_proj.weight
    room, projection = parts[:-2], parts[-2]
    if piece.expert is not None:
        layer = "linear_fc2" if projection == "down_proj" else "linear_fc1"
        key = f"{prefix}mlp.experts.experts.{layer}.weight"
        return Place(key=key, shape=_stacked_shape(piece, model), expert=piece.expert, rows=piece.rows)
    base = prefix + ".".join(room)
    if projection == "down_proj":
        return Place(key=f"{base}.linear_fc2.weight", shape=piece.shape)
    width, H = piece.shape
    rows = (0, width) if projection == "gate_proj" else (width, 2 * width)
    return Place(key=f"{base}.linear_fc1.weight", shape=(2 * width, H), rows=rows)


EMBEDDING = "embedding.word_embeddings.weight"
_TOP = {
    "model.word_embeddings.weight": EMBEDDING,
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
_MTP_NORMS = ("enorm.weight", "hnorm.weight", "eh_proj.weight", "final_layernorm.weight")
_DENSE_NORM = "mlp.linear_fc1.layer_norm_weight"
_LAYER = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "attention.query_layernorm.weight": "self_attention.q_layernorm.weight",
    "attention.key_layernorm.weight": "self_attention.k_layernorm.weight",
    "attention.dense.weight": "self_attention.linear_proj.weight",
    "attention.dense.bias": "self_attention.linear_proj.bias",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.expert_bias": "mlp.router.expert_bias",
}


def _locate(key: str, model: ModelConfig) -> tuple[str, str, bool]:
    """Split a published key into Megatron's prefix and the rest; say whether its layer is sparse."""
    if not key.startswith("model.layers."):
        return "", key, False
    number, _, name = key.removeprefix("model.layers.").partition(".")
    layer = int(number)
    if layer >= model.num_hidden_layers:
        return f"mtp.layers.{layer - model.num_hidden_layers}.", name, True
    return f"decoder.layers.{layer}.", name, model.is_moe(layer)


def _stacked_shape(piece: Piece, model: ModelConfig) -> tuple[int, ...]:
    if piece.expert is None:
        return piece.shape
    rows, columns = piece.shape
    return (model.num_experts, 2 * rows if piece.rows is not None else rows, columns)


@functools.lru_cache(maxsize=4)
def _query_groups_last(model: ModelConfig) -> Tensor:
    """Return, per row of [all Q | all K | all V], its row where each group holds [its Q heads | K | V]."""
    A, K, D = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    if model.qkv_dim > _MOST_ROWS:
        raise CheckpointError(f"the configuration describes {model.qkv_dim:,} rows of queries, keys and values")
    per_group = A // K
    grouped = torch.arange(model.qkv_dim).view(K, per_group + 2, D)
    return torch.cat([grouped[:, :per_group].reshape(-1), grouped[:, -2].reshape(-1), grouped[:, -1].reshape(-1)])
