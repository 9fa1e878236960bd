"""A pre-norm block: attention and feed-forward, each added to the residual stream."""

from torch import Tensor, nn

from ling.config import ModelConfig
from ling.model.attention import Attention
from ling.model.batch import AttentionBatch
from ling.model.mlp import MLP
from ling.model.moe import SparseMoe
from ling.model.norm import RMSNorm
from ling.ops.rope import Rope
from ling.ops.router import Routing


class Block(nn.Module):
    """Stored layer `layer`; dense or sparse as the configuration says."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        H = model.hidden_size
        self.input_layernorm = RMSNorm(H, model.rms_norm_eps)
        self.attention = Attention(model, layer)
        self.post_attention_layernorm = RMSNorm(H, model.rms_norm_eps)
        self.mlp: SparseMoe | MLP = SparseMoe(model) if model.is_moe(layer) else MLP(H, model.intermediate_size)

    def forward(self, x: Tensor, rope: Rope, batch: AttentionBatch) -> tuple[Tensor, Routing | None]:
        """Return the residual stream (N, H) after the block, and the routing of a sparse one."""
        x = x + self.attention(self.input_layernorm(x), rope, batch)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, SparseMoe):
            y, routing = self.mlp(normed)
            return x + y, routing
        return x + self.mlp(normed), None
