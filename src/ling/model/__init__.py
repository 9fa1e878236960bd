"""The only definition of the network's mathematics. Modules hold parameters and order; arithmetic is in `ops`."""

from ling.model.batch import AttentionBatch, PackedBatch
from ling.model.init import init_weights
from ling.model.transformer import CausalLM, ModelOutput

__all__ = ["AttentionBatch", "CausalLM", "ModelOutput", "PackedBatch", "init_weights"]
