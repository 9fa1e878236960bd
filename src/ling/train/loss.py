"""The training loss: next token, MTP, and the routers' z-loss.

    loss = CE + mtp_loss_scaling_factor * sum_i CE_mtp_i + router_z_loss * sum_layers mean(logsumexp(logits)^2)

Each cross-entropy is the mean over its own slots that count (spec: model.md 6 and 7). Balance needs no loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ling.model import CausalLM, ModelOutput
from ling.ops.cross_entropy import IGNORE, linear_cross_entropy


class Losses(NamedTuple):
    """Losses of one microbatch; `total` is what is differentiated, the rest is detached."""

    total: Tensor
    main: Tensor
    """() mean nats per learnt token."""
    mtp: tuple[Tensor, ...]
    """Per depth, mean nats per slot."""
    mtp_correct_fraction: tuple[Tensor, ...]
    """Per depth, share of slots whose most likely token is right: bounds what greedy drafting can gain."""
    z_loss: Tensor
    """() mean squared log-sum-exp, averaged over layers, without its weight."""
    num_learnt: Tensor
    """() slots that count in `main`."""


def compute_loss(
    model: CausalLM, output: ModelOutput, labels: Tensor, mtp_labels: Tensor, *, router_z_loss: float = 0.0
) -> Losses:
    """Compose the loss of one microbatch from the model's output; labels as in `TrainBatch`."""
    head = model.head_weight
    main = linear_cross_entropy(output.hidden, head, labels)
    num_learnt = (labels != IGNORE).sum()
    total = main.total / num_learnt.clamp_min(1)
    losses, correct = [], []
    for hidden, wanted in zip(output.mtp_hidden, mtp_labels):
        ahead = linear_cross_entropy(hidden, head, wanted)
        count = (wanted != IGNORE).sum().clamp_min(1)
        losses.append(ahead.total / count)
        correct.append(ahead.correct.sum() / count)
    main_loss = total.detach()
    if losses:
        total = total + model.config.mtp_loss_scaling_factor * torch.stack(losses).sum()
    z_losses = [routing.logits.logsumexp(1).square().mean() for routing in output.routings.values()]
    if router_z_loss and z_losses:
        total = total + router_z_loss * torch.stack(z_losses).sum()
    return Losses(
        total=total,
        main=main_loss,
        mtp=tuple(loss.detach() for loss in losses),
        mtp_correct_fraction=tuple(correct),
        z_loss=torch.stack(z_losses).mean().detach() if z_losses else torch.zeros(()),
        num_learnt=num_learnt,
    )
