"""Grouped-query attention with QK norm and half RoPE (spec: model.md 4.2)."""

import torch
from torch import Tensor, nn

from ling.config import ModelConfig
from ling.model.batch import AttentionBatch
from ling.model.linear import Linear, quantity_of
from ling.model.norm import RMSNorm
from ling.ops.attention import AttentionWeights, HeadShape, attention_step
from ling.ops.rope import Rope


class Attention(nn.Module):
    """One attention sub-layer; `layer` is its index in the cache (MTP layers follow the main ones)."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        D = model.head_dim
        self.heads = HeadShape(model.num_attention_heads, model.num_key_value_heads, D, model.rms_norm_eps)
        self.query_key_value = Linear(model.hidden_size, model.qkv_dim, bias=model.use_qkv_bias)
        self.query_layernorm = RMSNorm(D, model.rms_norm_eps) if model.use_qk_norm else None
        self.key_layernorm = RMSNorm(D, model.rms_norm_eps) if model.use_qk_norm else None
        self.dense = Linear(model.num_attention_heads * D, model.hidden_size, bias=model.use_bias)

    def forward(self, x: Tensor, rope: Rope, batch: AttentionBatch) -> Tensor:
        """Attend from normalised hidden states (N, H) -> (N, H)."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return batch.attend(self.layer, q, k, v)

        return attention_step(x, self.weights(), self.heads, rope, attend)

    def weights(self) -> AttentionWeights:
        """Return the weights as ops take them."""
        qkv, dense = self.query_key_value, self.dense
        norms = (_weight(self.query_layernorm), _weight(self.key_layernorm))
        return AttentionWeights(quantity_of(qkv), qkv.bias, *norms, quantity_of(dense), dense.bias)


def _weight(norm: RMSNorm | None) -> torch.Tensor | None:
    return None if norm is None else norm.weight
