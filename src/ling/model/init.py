"""Initial weights (spec: model.md 8, the training framework's rule): every matrix normal, norms one, biases zero."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ling.model.norm import RMSNorm
from ling.model.transformer import CausalLM


@torch.no_grad()
def init_weights(model: CausalLM, generator: torch.Generator | None = None) -> CausalLM:
    """Fill all parameters and buffers; the embedding row of the padding id is zero. Returns `model`."""
    state = model.state_dict()
    for name, value in initial_values(model, generator):
        state[name].copy_(value)
    return model


@torch.no_grad()
def initial_values(model: CausalLM, generator: torch.Generator | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield what each parameter and expert bias begins with, by name: whole, one at a time, where `generator` draws.

    That is the CPU unless it says otherwise. `model` gives names and shapes alone and may be without memory, so ranks
    that hold parts of it draw the same.
    """
    device = "cpu" if generator is None else generator.device
    std, padding = model.config.initializer_range, model.config.pad_token_id
    norms = {id(m.weight) for m in model.modules() if isinstance(m, RMSNorm)}
    for name, parameter in model.named_parameters():
        value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        if id(parameter) in norms:
            value.fill_(1.0)
        elif name.endswith(".bias"):
            value.zero_()
        else:
            value.normal_(0.0, std, generator=generator)
        if parameter is model.model.word_embeddings.weight and padding is not None:
            value[padding].zero_()
        yield name, value
    for name, buffer in model.named_buffers():
        if name.endswith("expert_bias"):
            yield name, torch.zeros(buffer.shape, dtype=buffer.dtype)
