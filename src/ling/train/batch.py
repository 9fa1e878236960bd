"""What one microbatch is trained on: packed documents and what each slot should predict."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ling.model.batch import PackedBatch, shift_within
from ling.ops.cross_entropy import IGNORE
from ling.ops.ragged import Ragged
from ling.parallel.context import ContextBatch
from ling.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """A pack of whole documents with its labels.

    tokens, positions  (N,)
    labels             (N,) next token, IGNORE where it is not to be learnt
    mtp_labels         (D, N) the token i + 2 places ahead for MTP depth i, under the same mask
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    mtp_labels: Tensor
    attention: PackedBatch | ContextBatch
    token_runs: tuple[int, ...] = ()
    """Where tensor ranks share the tokens out: how many each has. `positions` are then those of all of them."""

    def to(self, device: torch.device | str) -> "TrainBatch":
        """Return the same batch on `device`; this one if it is there already."""
        if self.tokens.device == torch.device(device):
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        batch = self.attention
        assert isinstance(batch, PackedBatch), "batches are shared out on their device"
        ahead = None if batch.mtp_ids is None else moved(batch.mtp_ids)
        return TrainBatch(
            moved(self.tokens), moved(self.positions), moved(self.labels), moved(self.mtp_labels),
            PackedBatch(Ragged(batch.rows.lengths, device), ahead),
        )  # fmt: skip

    def shared(self, ranks: Ranks) -> "TrainBatch":
        """Return what this rank holds of the batch: all of it, or a run of its tokens."""
        assert isinstance(self.attention, PackedBatch), "a batch is shared out once"
        share = ranks.share(self.attention, len(self.tokens))
        here = share.tokens
        return TrainBatch(
            self.tokens[here], self.positions[share.positions], ranks.share_labels(self.labels[here]),
            ranks.share_labels(self.mtp_labels[:, here]), share.batch, share.token_runs,
        )  # fmt: skip


def build_batch(documents: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], mtp_depth: int) -> TrainBatch:
    """Pack documents.

    documents  B lists of token ids
    masks      per document, which of its tokens are to be learnt; a first token has nothing to be predicted from
    """
    rows = Ragged([len(d) for d in documents])
    tokens = torch.tensor([t for d in documents for t in d], dtype=torch.int64)
    learnt = torch.tensor([m for mask in masks for m in mask], dtype=torch.bool)
    targets = torch.where(learnt, tokens, IGNORE)
    shifted = shift_within(targets, rows, mtp_depth + 1, fill=IGNORE)
    mtp_ids = shift_within(tokens, rows, mtp_depth, fill=0) if mtp_depth else None
    return TrainBatch(tokens, rows.index_in_sequence, shifted[0], shifted[1:], PackedBatch(rows, mtp_ids))
