"""Training speed on a CPU against transformers' glm4_moe, its closest model: same weights, same routing, float32.

    python -m benchmarks.run train_vs_transformers

glm4_moe runs its experts through grouped GEMMs (its default). MTP is off: glm4_moe has none.
"""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.glm4_moe import stand_in
from benchmarks.training_race import CONFIG, assert_same_routing, build_ours, draw_tokens, fill, race, renamed
from ling.model import CausalLM

TARGET = 1.3


def build_peer(ours: CausalLM) -> Any:
    """Return glm4_moe of the same shape with `ours`' weights."""
    peer = AutoModelForCausalLM.from_config(stand_in(ours.config), attn_implementation="sdpa", dtype=torch.float32)
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
