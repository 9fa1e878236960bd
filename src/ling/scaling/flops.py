"""Floating-point operations per token, matrix products only; attention counts the causal half.

Training is three times forward (one product forward, two backward). The sum reproduces the TFLOP/s that the
published training log prints, so figures can be compared.
"""

from dataclasses import dataclass

from ling.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsPerToken:
    """FLOPs of one token's forward pass, averaged over a sequence of `sequence_length` tokens."""

    sequence_length: int
    projections: int
    """Attention projections."""
    attention: int
    """Scores and values, causal half."""
    feed_forward: int
    """Dense layers, routed and shared experts."""
    router: int
    head: int
    mtp: int
    """MTP layers with their own pass through the head."""

    @property
    def forward(self) -> int:
        """Without MTP, which inference skips."""
        return self.projections + self.attention + self.feed_forward + self.router + self.head

    @property
    def training(self) -> int:
        """Forward and backward, MTP included."""
        return 3 * (self.forward + self.mtp)


def count_flops(model: ModelConfig, sequence_length: int) -> FlopsPerToken:
    """Count the matrix-product FLOPs per token of `model` at `sequence_length` tokens per document."""
    H, L, M = model.hidden_size, model.num_hidden_layers, model.num_moe_layers
    q_dim = model.num_attention_heads * model.head_dim
    projections = 2 * (H * model.qkv_dim + q_dim * H)
    attention = 2 * sequence_length * q_dim  # two products of 2 * (S / 2) * q_dim
    experts = 6 * H * (model.num_experts_per_tok * model.moe_intermediate_size + model.shared_expert_dim)
    router = 2 * H * model.num_experts
    head = 2 * H * model.vocab_size
    mtp_layer = projections + attention + experts + router + head + 4 * H * H
    return FlopsPerToken(
        sequence_length=sequence_length,
        projections=L * projections,
        attention=L * attention,
        feed_forward=model.first_k_dense_replace * 6 * H * model.intermediate_size + M * experts,
        router=M * router,
        head=head,
        mtp=model.num_nextn_predict_layers * mtp_layer,
    )
