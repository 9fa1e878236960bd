"""The training loss: next token, MTP, and the routers' z-loss.

    loss = CE + mtp_loss_scaling_factor * sum_i CE_mtp_i + router_z_loss * sum_layers mean(logsumexp(logits)^2)

Each cross-entropy is the mean over its own slots that count (spec: model.md 6 and 7). Balance needs no loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ling.config import ModelConfig
from ling.model import CausalLM, ModelOutput
from ling.ops.cross_entropy import IGNORE
from ling.parallel.ranks import Ranks
from ling.train.batch import TrainBatch


class LossCounts(NamedTuple):
    """What the sums of a whole step are divided by: the same for each of its microbatches, known before the first."""

    main: int
    """Slots that learn the next token."""
    mtp: tuple[int, ...]
    """Per depth, slots that learn the token further ahead."""
    tokens: int
    """All of them: the routers' z-loss is a mean over every token."""

    @classmethod
    def of(cls, batches: Sequence[TrainBatch]) -> "LossCounts":
        """Count the slots of a step's microbatches."""
        mtp = [(batch.mtp_labels != IGNORE).sum(1).tolist() for batch in batches]
        return cls(
            main=sum(int((batch.labels != IGNORE).sum()) for batch in batches),
            mtp=tuple(map(sum, zip(*mtp))),
            tokens=sum(len(batch.tokens) for batch in batches),
        )

    def summed(self, ranks: Ranks) -> "LossCounts":
        """Return the counts of all ranks' microbatches together."""
        main, *mtp, tokens = ranks.sum_integers([self.main, *self.mtp, self.tokens])
        return LossCounts(main, tuple(mtp), tokens // ranks.stage.count)  # each stage has all tokens


class Losses(NamedTuple):
    """Losses of one microbatch, its part of the step's; `total` is what is differentiated, the rest is detached."""

    total: Tensor
    main: Tensor
    """() mean nats per learnt token."""
    mtp: tuple[Tensor, ...]
    """Per depth, mean nats per slot."""
    mtp_correct_fraction: tuple[Tensor, ...]
    """Per depth, share of slots whose most likely token is right: bounds what greedy drafting can gain."""
    z_loss: Tensor
    """() mean squared log-sum-exp, averaged over the sparse layers of the whole model, without its weight."""
    num_learnt: Tensor
    """() slots that count in `main`."""

    def summed(self, ranks: Ranks) -> "Losses":
        """Return the losses of all ranks together, each of them having been divided by the counts of all; detached."""
        D = len(self.mtp)
        learnt = self.num_learnt.to(torch.float64)
        numbers = [self.total, self.main, self.z_loss, *self.mtp, *self.mtp_correct_fraction]
        total, main, z_loss, *ahead, learnt = ranks.sum_tensors([*(n.to(torch.float64) for n in numbers), learnt])
        return Losses(total, main, tuple(ahead[:D]), tuple(ahead[D:]), z_loss, learnt.to(torch.int64))


def compute_loss(
    model: CausalLM,
    output: ModelOutput,
    labels: Tensor,
    mtp_labels: Tensor,
    *,
    router_z_loss: float = 0.0,
    counts: LossCounts | None = None,
) -> Losses:
    """Compose the loss of one microbatch from the model's output; labels as in `TrainBatch`.

    counts  of the step it belongs to, so that the losses of its microbatches add up to the step's; None: it is alone
    """
    head = model.head_weight
    main = model.score(output.hidden, head, labels)
    num_learnt = (labels != IGNORE).sum()
    total = main.total / (num_learnt.clamp_min(1) if counts is None else max(counts.main, 1))
    losses, correct = [], []
    for depth, (hidden, wanted) in enumerate(zip(output.mtp_hidden, mtp_labels)):
        ahead = model.score(hidden, head, wanted)
        count = (wanted != IGNORE).sum().clamp_min(1) if counts is None else max(counts.mtp[depth], 1)
        losses.append(ahead.total / count)
        correct.append(ahead.correct.sum() / count)
    main_loss = total.detach()
    if losses:
        total = total + model.config.mtp_loss_scaling_factor * torch.stack(losses).sum()
    missing = [torch.zeros_like(main_loss)] * (len(mtp_labels) - len(losses))
    tokens = len(labels) if counts is None else counts.tokens
    whole = max(1, len(sparse_layers(model.config, len(mtp_labels))))
    z_losses = [routing.logits.logsumexp(1).square().sum() / tokens for routing in output.routings.values()]
    if router_z_loss and z_losses:
        total = total + router_z_loss * torch.stack(z_losses).sum()
    return Losses(
        total=total,
        main=main_loss,
        mtp=tuple(loss.detach() for loss in [*losses, *missing]),
        mtp_correct_fraction=(*correct, *missing),
        z_loss=torch.stack(z_losses).sum().detach() / whole if z_losses else torch.zeros_like(main_loss),
        num_learnt=num_learnt,
    )


def sparse_layers(config: ModelConfig, mtp_depth: int) -> list[int]:
    """Return the stored layers with routers that run when `mtp_depth` MTP layers do, on this rank or another."""
    mtp = range(config.num_hidden_layers, config.num_hidden_layers + mtp_depth)
    return [*(layer for layer in range(config.num_hidden_layers) if config.is_moe(layer)), *mtp]


def add_losses(parts: Sequence[Losses]) -> Losses:
    """Add the losses of a step's microbatches up."""
    first, *rest = parts
    for part in rest:
        first = Losses(
            total=first.total + part.total,
            main=first.main + part.main,
            mtp=tuple(a + b for a, b in zip(first.mtp, part.mtp)),
            mtp_correct_fraction=tuple(a + b for a, b in zip(first.mtp_correct_fraction, part.mtp_correct_fraction)),
            z_loss=first.z_loss + part.z_loss,
            num_learnt=first.num_learnt + part.num_learnt,
        )
    return first
