"""Short trainings with and without updates during backward, on the ranks of a layout or in one process."""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from tests.parallel.parity import LAYOUTS, batches_of, recipe_for, whole
from torch import Tensor

from ling.config.parallel import ParallelConfig
from ling.errors import TrainingError
from ling.model import CausalLM
from ling.parallel.ranks import Ranks
from ling.parallel.shard import parallelize, policy_of
from ling.scaling.layout import plan_layout
from ling.testing.models import tiny_model
from ling.train.state import TrainState
from ling.train.step import train_step

STEPS = 3
MTP = {"num_nextn_predict_layers": 1, "mtp_loss_scaling_factor": 0.3}


class Run:
    def __init__(self, layout: str | None, **changes: Any) -> None:
        recipe = recipe_for(1)
        self.recipe = replace(recipe, optim=replace(recipe.optim, **changes))
        weights = self.recipe.optim.weights
        self.model: CausalLM = tiny_model(**MTP).to(getattr(torch, weights))
        self.ranks: Ranks | None = None
        if layout is not None:
            world_size, sizes = LAYOUTS[layout]
            self.ranks = Ranks(plan_layout(ParallelConfig(**sizes), self.recipe.model, world_size, 16))
            self.model = parallelize(self.model, self.ranks, policy_of(weights))
        self.state = TrainState(self.model, self.recipe.optim, sharded=layout is not None, ranks=self.ranks)

    def step(self, number: int, pieces: int) -> float:
        where = (self.ranks.data_rank, self.ranks.data_size) if self.ranks else (0, 1)
        found = batches_of(number, True, 1, *where, pieces)
        s = self.state
        result = train_step(
            self.model, s.optimizer, found, self.recipe, number, self.ranks, s.guard, s.frozen_biases, s.in_backward
        )
        return float(result.grad_norm)


def train(layout: str | None, pieces: int, changes: dict[str, Any]) -> tuple[dict[str, Tensor], list[float]]:
    """Return the weights and moments after a few steps, whole, and the gradient norms."""
    run = Run(layout, **changes)
    norms = [run.step(number, pieces) for number in range(STEPS)]
    return {name: whole(tensor) for name, tensor in run.state.tensors().items()}, norms


def meet_what_is_not_finite(layout: str) -> tuple[str | None, str, bool]:
    """Let one rank's gradients overflow; return the layer that was found, the message, and whether others moved."""
    run = Run(layout, in_backward=True, clip_grad_norm=0.0)

    def spoil(block: Any, inputs: Any, outputs: Any) -> None:
        outputs[0].register_hook(lambda gradient: gradient * torch.inf)

    if dist.get_rank() == 1:
        run.model.model.layers[1].register_forward_hook(spoil)
    before = {name: whole(tensor) for name, tensor in run.model.state_dict().items()}
    try:
        run.step(0, 1)
    except TrainingError as error:
        message = str(error)
    after = {name: whole(tensor) for name, tensor in run.model.state_dict().items()}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert run.state.in_backward is not None
    late = ("model.word_embeddings", "model.layers.0.", "model.layers.1.")
    return run.state.in_backward.broken, message, any(name.startswith(late) for name in moved)
