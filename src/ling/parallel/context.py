"""Long sequences on several ranks: each holds a run of a microbatch's tokens, and attention trades tokens for heads.

Every layer but attention works token by token. For attention an all-to-all gives each rank all tokens of some heads
(DeepSpeed-Ulysses, arXiv 2309.14509), so it runs as on one process, packs and all, and the work is even however long
the documents are; a second one takes the result back. Where there are fewer key-value heads than ranks they travel in
copies, whose gradients autograd adds up. Plain collectives do it on any device and backend.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ling.distributed.collectives import all_to_all_rows
from ling.ops.attention import attention
from ling.ops.ragged import Ragged


def even_split(count: int, parts: int) -> list[int]:
    """Return sizes of `parts` runs of `count`, the longer ones first; they differ by 1 at most."""
    each, more = divmod(count, parts)
    return [each + (part < more) for part in range(parts)]


@dataclass(frozen=True, slots=True)
class ContextBatch:
    """What one rank holds of a pack; an `AttentionBatch`.

    rows     the documents of the whole pack, N tokens
    sizes    tokens on each rank, in order; n of them here
    mtp_ids  (D, n) as in `AttentionBatch`, of the tokens here
    """

    rows: Ragged
    sizes: list[int]
    group: ProcessGroup
    mtp_ids: Tensor | None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        C, me = self.group.size(), self.group.rank()
        (n, A, D), K = q.shape, k.shape[1]
        width = max(1, K // C)
        firsts = [rank * A // C // (A // K) for rank in range(C)]  # key-value head of each rank's first query head
        assert A % C == K % min(K, C) == C % min(K, C) == 0, (A, K, C)
        keys_and_values = torch.stack([k, v], 2)  # (n, K, 2, D)
        there_q = self._to_heads(q.unflatten(1, (C, A // C)))
        copies = torch.stack([keys_and_values[:, first : first + width] for first in firsts], 1)
        there_kv = self._to_heads(copies)  # (N, width, 2, D)
        out = attention(there_q, there_kv[:, :, 0], there_kv[:, :, 1], self.rows, self.rows)  # (N, A / C, D)
        back = all_to_all_rows(out, self.sizes, [self.sizes[me]] * C, self.group)
        return back.view(C, n, A // C, D).transpose(0, 1).reshape(n, A, D)

    def _to_heads(self, x: Tensor) -> Tensor:
        """Send each rank its heads of the tokens here: (n, C, heads, ...) -> (N, heads, ...)."""
        C, n = x.shape[1], x.shape[0]
        rows = x.transpose(0, 1).flatten(0, 1)
        return all_to_all_rows(rows, [n] * C, self.sizes, self.group)
