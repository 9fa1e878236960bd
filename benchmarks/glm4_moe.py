"""transformers' nearest network to Ling, for comparisons in speed."""

from typing import Any

import transformers

from ling.config import ModelConfig


def stand_in(c: ModelConfig) -> Any:
    """Return the configuration of `glm4_moe` of the same shape."""
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
