"""Small models with every parameter away from its default, so that nothing cancels."""

import dataclasses
from typing import Any

import torch

from ling.config import ModelConfig, preset
from ling.model import CausalLM, init_weights


def tiny_config(**changes: Any) -> ModelConfig:
    """Return the `tiny` preset with changes."""
    return dataclasses.replace(ModelConfig(**preset("tiny")["model"]), **changes)


@torch.no_grad()
def tiny_model(seed: int = 0, **changes: Any) -> CausalLM:
    """Return a float32 tiny model: random weights of size 0.1, norms around 1, expert biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    model = init_weights(CausalLM(tiny_config(initializer_range=0.1, **changes)), generator)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("expert_bias"):
            buffer.add_(torch.randn(buffer.shape, generator=generator), alpha=0.05)
    return model
