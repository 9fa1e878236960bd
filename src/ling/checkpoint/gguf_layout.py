"""Where published tensors lie in GGUF files of architecture `bailingmoe2`, as llama.cpp reads them.

The fused query-key-value matrix keeps its published rows (all Q heads, all K, all V), for llama.cpp pairs channels as
the published network does. Experts are stacked, gate and up apart. MTP layers are blocks after the last one.
"""

from ling.checkpoint.layout import Layout, Place
from ling.checkpoint.names import Piece
from ling.config import ModelConfig
from ling.errors import CheckpointError

_TOP = {
    "model.word_embeddings.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
EMBEDDING, HEAD = _TOP["model.word_embeddings.weight"], _TOP["lm_head.weight"]
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "attention.query_key_value.weight": "attn_qkv.weight",
    "attention.query_layernorm.weight": "attn_q_norm.weight",
    "attention.key_layernorm.weight": "attn_k_norm.weight",
    "attention.dense.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.expert_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "eh_proj.weight": "nextn.eh_proj.weight",
    "final_layernorm.weight": "layer_output_norm.weight",
}
_EXPERTS = {
    "gate_proj": "ffn_gate_exps.weight",
    "up_proj": "ffn_up_exps.weight",
    "down_proj": "ffn_down_exps.weight",
}
_MAX_EXPERTS, _MAX_LAYERS = 1024, 512  # llama.cpp b11434


def gguf_layout(model: ModelConfig) -> Layout:
    """Return the places in a GGUF file."""

    def place(piece: Piece) -> Place:
        if piece.key in _TOP:
            return Place(key=_TOP[piece.key], shape=piece.shape)
        name = piece.key.removeprefix(f"model.layers.{piece.layer}.")
        if piece.expert is None:
            return Place(key=f"blk.{piece.layer}.{_LAYER[name]}", shape=piece.shape)
        stacked = _EXPERTS[name.split(".")[-2]]  # mlp.experts.7.gate_proj.weight
        return Place(
            key=f"blk.{piece.layer}.{stacked}", shape=(model.num_experts, *piece.shape), expert=piece.expert
        )  # fmt: skip

    return place


def check_fits_gguf(model: ModelConfig, where: str) -> None:
    """Raise CheckpointError that starts with `where` if `bailingmoe2` would be another network, or none."""
    q_dim, scaling = model.num_attention_heads * model.head_dim, model.rope_scaling
    reasons = {
        f"heads of {q_dim} channels together where hidden_size is {model.hidden_size}": q_dim != model.hidden_size,
        "no QK norm": not model.use_qk_norm,
        "biases on linear layers": model.use_qkv_bias or model.use_bias,
        "no experts": not model.num_experts,
        "no shared expert": not model.shared_expert_dim,
        f"{model.num_experts} experts, more than {_MAX_EXPERTS}": model.num_experts > _MAX_EXPERTS,
        f"{model.num_stored_layers} layers, more than {_MAX_LAYERS}": model.num_stored_layers > _MAX_LAYERS,
    }
    if scaling is not None and scaling.type == "yarn":
        reasons |= {
            f"YaRN with beta_fast {scaling.beta_fast:g} and beta_slow {scaling.beta_slow:g} in place of 32 and 1": (
                (scaling.beta_fast, scaling.beta_slow) != (32, 1)
            ),
            "YaRN without truncate": not scaling.truncate,
        }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise CheckpointError(
            f"{where} has {found[0]}, which llama.cpp's architecture bailingmoe2 cannot express; "
            "GGUF is no format for this model"
        )
