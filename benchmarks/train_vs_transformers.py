"""Training speed on a CPU against transformers' glm4_moe, its closest model: same weights, same routing, float32.

    python -m benchmarks.run train_vs_transformers

glm4_moe runs its experts through grouped GEMMs (its default). MTP is off: glm4_moe has none.
"""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.training_race import CONFIG, assert_same_routing, build_ours, draw_tokens, fill, race, renamed
from ling.model import CausalLM

TARGET = 1.3


def build_peer(ours: CausalLM) -> Any:
    """Return glm4_moe of the same shape with `ours`' weights."""
    c = ours.config
    peer_config = AutoConfig.for_model(
        "glm4_moe", vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
        intermediate_size=c.intermediate_size, first_k_dense_replace=c.first_k_dense_replace,
        num_attention_heads=c.num_attention_heads, num_key_value_heads=c.num_key_value_heads, head_dim=c.head_dim,
        n_routed_experts=c.num_experts, num_experts_per_tok=c.num_experts_per_tok, n_shared_experts=1,
        moe_intermediate_size=c.moe_intermediate_size, n_group=c.n_group, topk_group=c.topk_group,
        routed_scaling_factor=c.routed_scaling_factor, norm_topk_prob=True, use_qk_norm=True, attention_bias=False,
        rms_norm_eps=c.rms_norm_eps, max_position_embeddings=c.max_position_embeddings, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta, "partial_rotary_factor": 0.5},
        pad_token_id=None, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    peer = AutoModelForCausalLM.from_config(peer_config, attn_implementation="sdpa", dtype=torch.float32)
    names = {
        "model.word_embeddings": "model.embed_tokens", "attention.dense": "self_attn.o_proj",
        "attention.query_layernorm": "self_attn.q_norm", "attention.key_layernorm": "self_attn.k_norm",
        "gate.expert_bias": "gate.e_score_correction_bias",
    }  # fmt: skip
    fill(peer, renamed(ours, names))
    return peer


def chosen_experts(peer: Any, tokens: Tensor) -> dict[int, Tensor]:
    """Return the experts that the peer chooses in every sparse layer."""
    chosen: dict[int, Tensor] = {}
    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda _m, args, i=i: chosen.__setitem__(i, args[1]))
        for i, layer in enumerate(peer.model.layers)
        if i >= CONFIG.first_k_dense_replace
    ]
    with torch.no_grad():
        peer(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return chosen


def main() -> None:
    tokens, ours = draw_tokens(), build_ours()
    peer = build_peer(ours)
    assert_same_routing(ours, tokens, chosen_experts(peer, tokens))

    def peer_loss() -> Tensor:
        return peer(input_ids=tokens, labels=tokens, use_cache=False).loss

    race("transformers", transformers.__version__, ours, peer, peer_loss, TARGET)


if __name__ == "__main__":
    main()
