"""What the model is asked to see: a flat row of tokens, and an object that answers `attend`.

Everything that depends on where documents end is prepared here, not rolled inside the model, so that packs,
prefill chunks and shards of a long context agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ling.ops.attention import attention
from ling.ops.ragged import Ragged


class AttentionBatch(Protocol):
    """Where new keys and values go and what queries see."""

    @property
    def mtp_ids(self) -> Tensor | None:
        """(D, N) int64: for MTP depth i the token i + 1 places ahead in its document, 0 where there is none.

        None: MTP layers are skipped.
        """
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend in stored layer `layer`: q (N, A, D), k and v (N, K, D) of the new tokens -> (N, A, D)."""
        ...


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Whole documents side by side; none sees another."""

    rows: Ragged
    mtp_ids: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, self.rows, self.rows)


def pack(
    documents: Sequence[Sequence[int]], *, mtp_depth: int = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, PackedBatch]:
    """Lay documents side by side.

    documents  B lists of token ids
    return     tokens (N,), positions (N,) that restart in each document, and the batch with its `mtp_ids`
    """
    rows = Ragged([len(d) for d in documents], device)
    tokens = torch.tensor([t for d in documents for t in d], dtype=torch.int64, device=device)
    mtp_ids = shift_within(tokens, rows, mtp_depth, fill=0) if mtp_depth else None
    return tokens, rows.index_in_sequence, PackedBatch(rows, mtp_ids)


def shift_within(tokens: Tensor, rows: Ragged, depth: int, *, fill: int) -> Tensor:
    """Return (depth, N): row i holds the token i + 1 places ahead in the same sequence, `fill` beyond its end."""
    ends = rows.cu_seqlens[1:].to(torch.int64)[rows.sequence_of_row]
    here = torch.arange(rows.total, device=tokens.device)
    shifted = []
    for ahead in range(1, depth + 1):
        inside = here + ahead < ends
        shifted.append(torch.where(inside, tokens[(here + ahead).clamp_max(rows.total - 1)], fill))
    return torch.stack(shifted)
