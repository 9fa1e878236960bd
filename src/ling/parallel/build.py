"""A model that no rank ever holds whole: built without memory, laid out, then filled part by part."""

import torch
from torch import Tensor

from ling.config import ModelConfig
from ling.config.model import DType
from ling.distributed.parts import local, part_of
from ling.model import CausalLM
from ling.model.init import initial_values
from ling.parallel.ranks import Ranks
from ling.parallel.shard import parallelize, policy_of


@torch.no_grad()
def build_model(
    config: ModelConfig,
    ranks: Ranks,
    generator: torch.Generator,
    precision: DType = "float32",
    weights: DType = "float32",
) -> CausalLM:
    """Return this rank's part of a model with new weights: those that `init_weights` gives one process.

    precision  what is computed with them
    weights    what they are kept in; routers are float32 whatever it is
    """
    with torch.device("meta"):
        whole, model = CausalLM(config), CausalLM(config).to(getattr(torch, weights))
    parallelize(model, ranks, policy_of(precision)).to_empty(device=ranks.device)
    state = model.state_dict()
    for name, value in initial_values(whole, generator):
        if name in state:  # else another stage has it
            copy_part(state[name], value)
    return model


@torch.no_grad()
def copy_part(target: Tensor, whole: Tensor) -> None:
    """Copy what `target` holds of `whole`: all of it, or this rank's shard."""
    local(target).copy_(part_of(whole, target))
