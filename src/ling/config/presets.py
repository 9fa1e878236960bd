"""Named shapes. A preset is a plain tree of overrides, so recipes and flags can be laid over it.

Sources: spec model.md 3 for the Ling models (flash: 4 key-value heads, the count that reproduces the published
4.8B activated parameters); the dense peers' own model cards for `qwen3_8b` and `llama31_8b`, whose shapes serve
as throughput baselines (their weights have other names, and Llama's frequency scaling is left out).
"""

import difflib
from typing import Any

from ling.errors import ConfigError

Tree = dict[str, Any]

_LING = {
    "moe_shared_expert_intermediate_size": 512,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.5,
    "initializer_range": 0.006,
    "mtp_loss_scaling_factor": 0.1,
}


def _dense(layers: int) -> Tree:
    """What makes every layer of the network dense."""
    return {
        "num_hidden_layers": layers, "first_k_dense_replace": layers, "num_experts": 0, "num_experts_per_tok": 0,
        "moe_intermediate_size": 0, "num_shared_experts": 0, "n_group": 0, "topk_group": 0,
        "pad_token_id": None, "eos_token_id": None,
    }  # fmt: skip


PRESETS: dict[str, Tree] = {
    "ling_mini": {"model": _LING},
    # The 5T to 20T base checkpoints: everything else is identical.
    "ling_mini_4k": {"model": {**_LING, "rope_theta": 10000.0, "max_position_embeddings": 4096}},
    "ling_flash": {
        "model": {
            **_LING,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "intermediate_size": 9216,
            "moe_intermediate_size": 1024,
            "moe_shared_expert_intermediate_size": 1024,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        }
    },
    "ling_1t": {
        "model": {
            **_LING,
            "hidden_size": 8192,
            "num_hidden_layers": 80,
            "first_k_dense_replace": 4,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "moe_shared_expert_intermediate_size": 2048,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        }
    },
    "qwen3_8b": {
        "model": {
            **_dense(36),
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 151936,
            "rope_theta": 1e6,
            "max_position_embeddings": 40960,
        }
    },
    "llama31_8b": {
        "model": {
            **_dense(32),
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "rope_theta": 5e5,
            "max_position_embeddings": 131072,
            "use_qk_norm": False,
            "rms_norm_eps": 1e-5,
        }
    },
    "tiny": {
        "model": {
            "vocab_size": 128,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rotary_dim": 16,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 12,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 256,
            "num_nextn_predict_layers": 1,
            "mtp_loss_scaling_factor": 0.1,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "float32",
        }
    },
    # What two CPU cores can train in three minutes, in Ling's form: 2 of 64 experts, a shared one, MTP.
    "demo": {
        "model": {
            "vocab_size": 2048,
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 2,
            "intermediate_size": 512,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rotary_dim": 16,
            "num_experts": 64,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 96,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 512,
            "num_nextn_predict_layers": 1,
            "mtp_loss_scaling_factor": 0.1,
            "initializer_range": 0.05,
            "pad_token_id": 2042,
            "eos_token_id": (2042, 2045),
            "torch_dtype": "float32",
        },
        "data": {"dialogue_fraction": 0.85},
        "optim": {"lr": 3e-3, "warmup_steps": 100, "beta2": 0.98, "expert_bias_update_rate": 1e-2},
        "train": {
            "steps": 1400,
            "tokens_per_step": 1024,
            "checkpoint_every": 200,
            "average_last": 10,
            "average_every": 40,
            "max_minutes": 6.0,
        },
    },
}


def preset(name: str) -> Tree:
    """Return the tree of overrides called `name`; ConfigError with a suggestion if there is none."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PRESETS)}"
        raise ConfigError(f"unknown preset {name or repr(name)}; {hint}")
    return PRESETS[name]
