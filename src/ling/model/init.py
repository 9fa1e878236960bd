"""Initial weights (spec: model.md 8, the training framework's rule): every matrix normal, norms one, biases zero."""

import torch
from torch import nn

from ling.model.norm import RMSNorm
from ling.model.transformer import CausalLM


@torch.no_grad()
def init_weights(model: CausalLM, generator: torch.Generator | None = None) -> CausalLM:
    """Fill all parameters and buffers; the embedding row of the padding id is zero. Returns `model`."""
    std = model.config.initializer_range
    norms = {id(m.weight) for m in model.modules() if isinstance(m, RMSNorm)}
    for name, parameter in model.named_parameters():
        if id(parameter) in norms:
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            parameter.normal_(0.0, std, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("expert_bias"):
            buffer.zero_()
    embedding: nn.Embedding = model.model.word_embeddings
    if embedding.padding_idx is not None:
        embedding.weight[embedding.padding_idx].zero_()
    return model
