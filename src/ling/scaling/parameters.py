"""Parameter counts from a configuration (spec: model.md 9).

"Activated" counts what one token touches: the experts it is routed to in place of all of them. Expert biases are
buffers and not counted; the published totals leave out MTP layers and include embedding and head.
"""

from dataclasses import dataclass

from ling.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Numbers of weights. `total` and `activated*` are without MTP, as published."""

    total: int
    activated: int
    activated_without_embedding_and_head: int
    embedding_and_head: int
    mtp_layer: int
    """One MTP layer; embedding and head are shared and not in it."""
    mtp_layer_activated: int
    total_with_mtp: int
    """With the `num_nextn_predict_layers` that this configuration has."""
    expert_bias: int
    """Entries of the routers' bias buffers, without MTP."""


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Count the weights of `model` without building it."""
    H = model.hidden_size
    copies = 1 if model.tie_word_embeddings else 2
    vocab = copies * model.vocab_size * H
    dense = model.first_k_dense_replace * (count_attention(model) + 2 * H + 3 * H * model.intermediate_size)
    sparse = count_attention(model) + 2 * H + _moe(model, model.num_experts)
    sparse_active = count_attention(model) + 2 * H + _moe(model, model.num_experts_per_tok)
    body = dense + H + model.num_moe_layers * sparse
    body_active = dense + H + model.num_moe_layers * sparse_active
    mtp_extra = 3 * H + 2 * H * H
    return ParameterCounts(
        total=vocab + body,
        activated=vocab + body_active,
        activated_without_embedding_and_head=body_active,
        embedding_and_head=vocab,
        mtp_layer=sparse + mtp_extra,
        mtp_layer_activated=sparse_active + mtp_extra,
        total_with_mtp=vocab + body + model.num_nextn_predict_layers * (sparse + mtp_extra),
        expert_bias=model.num_moe_layers * model.num_experts if model.moe_router_enable_expert_bias else 0,
    )


def count_attention(model: ModelConfig) -> int:
    """Count the weights of one attention sub-layer, without the block's norms."""
    H, D = model.hidden_size, model.head_dim
    weights = H * model.qkv_dim + model.num_attention_heads * D * H
    weights += 2 * D if model.use_qk_norm else 0
    weights += model.qkv_dim if model.use_qkv_bias else 0
    return weights + (H if model.use_bias else 0)


def count_adapters(model: ModelConfig, rank: int) -> int:
    """Count the weights of LoRA of a rank beside attention, dense feed-forwards and shared experts, MTP included.

    Routed experts have none: with one each they would weigh as much as everything else together.
    """
    H, q_dim = model.hidden_size, model.num_attention_heads * model.head_dim
    layers = model.num_hidden_layers + model.num_nextn_predict_layers
    dense = model.first_k_dense_replace
    attention = (H + model.qkv_dim) + (q_dim + H)

    def feed_forward(width: int) -> int:
        return 3 * (H + width) if width else 0

    shared = (layers - dense) * feed_forward(model.shared_expert_dim)
    return rank * (layers * attention + dense * feed_forward(model.intermediate_size) + shared)


def _moe(model: ModelConfig, experts: int) -> int:
    H = model.hidden_size
    routed = 3 * H * model.moe_intermediate_size * experts
    return routed + 3 * H * model.shared_expert_dim + H * model.num_experts
