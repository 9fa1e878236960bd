"""Training speed on a CPU against NeMo AutoModel's ling_v2, their Ling 2.0: same weights, same routing, float32.

    python -m benchmarks.run train_vs_nemo

Its experts run through torch's grouped GEMM, its fastest way here; its loss is torch's cross-entropy over its logits.
MTP is off on both sides.
"""

from importlib.metadata import version
from typing import Any

import torch
from nemo_automodel.components.models.ling_v2.model import BackendConfig, BailingMoeV2Config, BailingMoeV2ForCausalLM
from torch import Tensor

from benchmarks.training_race import assert_same_routing, build_ours, draw_tokens, fill, race, renamed
from ling.model import CausalLM

TARGET = 1.25


def build_peer(ours: CausalLM) -> Any:
    """Return their model of the same shape with `ours`' weights."""
    c = ours.config
    peer_config = BailingMoeV2Config(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
        intermediate_size=c.intermediate_size, first_k_dense_replace=c.first_k_dense_replace,
        num_attention_heads=c.num_attention_heads, num_key_value_heads=c.num_key_value_heads, head_dim=c.head_dim,
        num_experts=c.num_experts, num_experts_per_tok=c.num_experts_per_tok, num_shared_experts=1,
        moe_intermediate_size=c.moe_intermediate_size, n_group=c.n_group, topk_group=c.topk_group,
        routed_scaling_factor=c.routed_scaling_factor, use_qk_norm=True, rms_norm_eps=c.rms_norm_eps,
        max_position_embeddings=c.max_position_embeddings, rope_theta=c.rope_theta, partial_rotary_factor=0.5,
        tie_word_embeddings=False, pad_token_id=None, eos_token_id=None, torch_dtype=torch.float32,
    )  # fmt: skip
    backend = BackendConfig(
        attn="sdpa", linear="torch", rms_norm="torch", rope="torch", rope_fusion=False, experts="torch_mm",
        dispatcher="torch",
    )  # fmt: skip
    peer = BailingMoeV2ForCausalLM(peer_config, backend=backend)
    names = {
        "model.word_embeddings": "model.embed_tokens", "attention.dense": "self_attn.o_proj",
        "attention.query_layernorm": "self_attn.q_norm", "attention.key_layernorm": "self_attn.k_norm",
        "gate.expert_bias": "gate.e_score_correction_bias", "experts.gate_up_proj": "experts.gate_and_up_projs",
        "mlp.experts.down_proj": "mlp.experts.down_projs",
    }  # fmt: skip
    values = renamed(ours, names)
    fill(peer, {name: v.transpose(1, 2) if name.endswith("_projs") else v for name, v in values.items()})
    return peer


def chosen_experts(peer: Any, tokens: Tensor) -> dict[int, Tensor]:
    """Return the experts that the peer chooses in every sparse layer."""
    chosen: dict[int, Tensor] = {}
    handles = []
    for name, module in peer.named_modules():
        if name.endswith("mlp.gate"):
            layer = int(name.split(".")[2])
            handles.append(
                module.register_forward_hook(lambda _m, _a, out, layer=layer: chosen.__setitem__(layer, out[1]))
            )
    with torch.no_grad():
        peer(tokens)
    for handle in handles:
        handle.remove()
    return chosen


def main() -> None:
    tokens, ours = draw_tokens(), build_ours()
    peer = build_peer(ours).train()
    assert_same_routing(ours, tokens, chosen_experts(peer, tokens))
    labels = tokens[:, 1:].flatten()

    def peer_loss() -> Tensor:
        output = peer(tokens)
        logits = getattr(output, "logits", output)
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels)

    race("nemo-automodel", version("nemo-automodel"), ours, peer, peer_loss, TARGET)


if __name__ == "__main__":
    main()
