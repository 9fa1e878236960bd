"""One optimizer update."""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ling.config.recipe import Recipe
from ling.config.training import OptimConfig
from ling.model import CausalLM
from ling.optim.build import set_lr
from ling.optim.expert_bias import update_expert_biases
from ling.optim.schedule import lr_at
from ling.optim.spikes import SpikeGuard
from ling.parallel.ranks import Ranks
from ling.train.batch import TrainBatch
from ling.train.in_backward import InBackward
from ling.train.loss import LossCounts, Losses, add_losses, compute_loss, sparse_layers


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one update did; tensors are detached."""

    losses: Losses
    grad_norm: Tensor
    """() before clipping."""
    counts: dict[int, Tensor]
    """By stored sparse layer, (E,) tokens per expert."""
    lr: float
    tokens: int
    """Of the whole step, over all ranks."""
    skipped: bool
    """Whether weights, moments and expert biases stayed as they were."""


def train_step(
    model: CausalLM,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[TrainBatch],
    recipe: Recipe,
    step: int,
    ranks: Ranks | None = None,
    guard: SpikeGuard | None = None,
    frozen_biases: Container[int] = (),
    in_backward: InBackward | None = None,
) -> StepResult:
    """Apply update `step`, counted from 0: forward and backward of each microbatch, clip, optimizer, expert biases.

    batches  this rank's microbatches, as many as every other's
    ranks    those that `model` is laid out over; None: it is whole and here
    guard    decides whether the update is thrown away; None: one without a history
    frozen_biases  layers whose expert bias stays
    in_backward    updates `model` by `optimizer` while backward runs; None: once, when all gradients are there

    The gradient is that of one loss over all microbatches of all ranks, however the step is cut into them; the result
    is the whole step's on every rank.

    Raises TrainingError, with the weights as they were, if the loss or the gradient is not finite and `guard` does not
    allow for it. With `in_backward` layers behind the gradient that is not finite have been updated by then.
    """
    optim = recipe.optim
    guard = guard or SpikeGuard(optim.skip)
    lr = lr_at(step, optim, recipe.train.steps)
    set_lr(optimizer, lr)
    if in_backward is not None:
        in_backward.begin(len(batches))
    parts: list[Losses] = []
    counts: dict[int, Tensor] = {}
    whole = LossCounts.of(batches)
    if ranks is not None:
        batches = [batch.shared(ranks) for batch in batches]
        whole = LossCounts.of(batches).summed(ranks)
    for i, is_backward in _passes(len(batches), ranks):
        batch = batches[i]
        if is_backward:
            if ranks is not None:
                ranks.turn_to(batch.token_runs)
            loss, parts[i] = parts[i].total, parts[i]._replace(total=parts[i].total.detach())
            if in_backward is None:
                loss.backward()
            elif not (_is_worth_backward(parts, len(batches), ranks, guard) and in_backward.backward(loss, i)):
                break
            continue
        if ranks is None:
            output = model(batch.tokens, batch.positions, batch.attention)
        else:
            output = ranks.run(model, batch.tokens, batch.positions, batch.attention, batch.token_runs)
        parts.append(
            compute_loss(model, output, batch.labels, batch.mtp_labels, router_z_loss=optim.router_z_loss, counts=whole)
        )
        for layer, routing in output.routings.items():
            counts[layer] = counts[layer] + routing.counts if layer in counts else routing.counts
        del output  # its activations are to go as soon as backward has used them
    losses = add_losses(parts)
    if ranks is not None:
        layers = sparse_layers(model.config, len(whole.mtp))
        losses, counts = losses.summed(ranks), ranks.sum_counts(counts, layers, model.config.num_experts)
    norm = _clip(model, optim, ranks) if in_backward is None else torch.tensor(in_backward.finish())
    by_norm = in_backward is None
    skipped = guard.reason_to_skip(step, losses.total.item(), norm.item(), optim.lr, by_norm=by_norm) is not None
    if not skipped:
        if in_backward is None:
            optimizer.step()
        update_expert_biases(model, counts, optim.expert_bias_update_rate, frozen_biases)
    optimizer.zero_grad(set_to_none=True)
    return StepResult(losses, norm, counts, lr, whole.tokens, skipped)


def _clip(model: CausalLM, optim: OptimConfig, ranks: Ranks | None) -> Tensor:
    """Scale all gradients to the largest norm; return the norm before, () of all ranks together."""
    largest = optim.clip_grad_norm if optim.clipping == "global" else 0.0
    if ranks is None:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), largest or torch.inf)
    ranks.stage.add_up_copies(model)
    norm = ranks.clip_grad_norm_(model, largest)
    ranks.stage.finish()
    return norm


def _is_worth_backward(parts: Sequence[Losses], microbatches: int, ranks: Ranks | None, guard: SpikeGuard) -> bool:
    """Whether the losses so far are finite and, once they are the whole step's, no spike; the same on all ranks."""
    loss = add_losses(parts).total
    if ranks is not None:
        (loss,) = ranks.sum_tensors([loss])
    value = loss.item()
    return math.isfinite(value) and (len(parts) < microbatches or guard.spike_of(value) is None)


def _passes(microbatches: int, ranks: Ranks | None) -> Iterable[tuple[int, bool]]:
    """Return (microbatch, whether it is its backward) in order: with one stage, each microbatch forth and back."""
    if ranks is not None:
        return ranks.stage.passes(microbatches)
    return [(i, is_backward) for i in range(microbatches) for is_backward in (False, True)]
