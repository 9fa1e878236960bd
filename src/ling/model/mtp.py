"""Multi-token prediction: one more block per depth, fed with the token ahead (spec: model.md 7).

At depth 0, slot t joins the main model's final hidden state of token t with the embedding of token t + 1 and
predicts token t + 2. Embedding and head are the main model's; its final norm is not applied again.
"""

import torch
from torch import Tensor

from ling.config import ModelConfig
from ling.model.batch import AttentionBatch
from ling.model.block import Block
from ling.model.linear import Linear
from ling.model.norm import RMSNorm
from ling.ops.rope import Rope
from ling.ops.router import Routing


class MtpBlock(Block):
    """A sparse block behind a projection of (embedding | hidden) and before a norm of its own."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__(model, layer)
        H = model.hidden_size
        self.enorm = RMSNorm(H, model.rms_norm_eps)
        self.hnorm = RMSNorm(H, model.rms_norm_eps)
        self.eh_proj = Linear(2 * H, H)
        self.final_layernorm = RMSNorm(H, model.rms_norm_eps)

    def predict(self, embedding: Tensor, hidden: Tensor, rope: Rope, batch: AttentionBatch) -> tuple[Tensor, Routing]:
        """Return the hidden state the head reads, (N, H), and the routing.

        embedding  (N, H)  of the token ahead
        hidden     (N, H)  what the depth before gave the head; at depth 0 the main model's, after its norm
        """
        x = self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(hidden)], dim=-1))
        x, routing = self.forward(x, rope, batch)  # not a call: hooks belong around the whole of `predict`
        assert routing is not None
        return self.final_layernorm(x), routing
