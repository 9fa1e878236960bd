"""One forward pass over the new tokens of some sequences."""

import torch
from torch import Tensor

from ling.engine.cache import KVCache, lay_out
from ling.engine.request import Sequence
from ling.model import CausalLM


class Runner:
    """The model beside its cache. The only place that calls the model."""

    def __init__(self, model: CausalLM, slots: int, max_tokens: int) -> None:
        self.model = model
        embedding = model.model.word_embeddings.weight
        self.device = embedding.device
        dtype = model.computes_in or embedding.dtype
        self.cache = KVCache(model.config, slots, max_tokens, dtype, self.device)

    @torch.inference_mode()
    def forward(self, sequences: list[Sequence], new: list[list[int]]) -> Tensor:
        """Run `new` tokens of each sequence behind what its cache holds; return hidden states (N, H)."""
        starts = [s.num_cached for s in sequences]
        batch = lay_out(self.cache, [s.slot for s in sequences], starts, [len(tokens) for tokens in new])
        tokens = torch.tensor([t for tokens in new for t in tokens], device=self.device)
        return self.model(tokens, batch.position_of_row, batch).hidden

    @torch.inference_mode()
    def draft(self, sequences: list[Sequence], starts: list[int], ahead: list[list[int]], hidden: Tensor) -> Tensor:
        """Run the first MTP layer over slots from `starts`; `ahead` holds the token after each slot's.

        hidden  (N, H)  of those slots: the main model's, or the layer's own for a second draft
        return  (N, H)
        """
        batch = lay_out(self.cache, [s.slot for s in sequences], starts, [len(tokens) for tokens in ahead])
        tokens = torch.tensor([t for tokens in ahead for t in tokens], device=self.device)
        return self.model.draft(0, tokens, hidden, batch.position_of_row, batch)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)
