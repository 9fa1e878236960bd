"""Muon's update of one parameter: momentum, orthogonalised matrix by matrix, a few experts at a time.

What counts as a matrix: gate and up of each expert on their own, query, key and value on their own, everything else
as it is stored (docs/decisions/muon-matrices.md).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ling.config import ModelConfig
from ling.config.optimizer import MuonConfig
from ling.optim.moments import BLOCK_SIZE
from ling.optim.newton_schulz import num_temporary_bytes, orthogonalize
from ling.optim.stored import CHUNK, InPlace, Stored

Orthogonalize = Callable[[Tensor], Tensor]
FullMatrix = Callable[[Tensor, Tensor, Orthogonalize], Tensor]
"""(parameter, update, orthogonalize) -> update: where the ranks hold parts of matrices, gathers what this rank has of
`update`, orthogonalises the whole and returns this rank's part. Called in the same order on every rank."""


def row_parts(name: str, rows: int, model: ModelConfig) -> tuple[int, ...]:
    """Return how many rows of a stored matrix, or of each of a stack, belong to each matrix in it."""
    if name.endswith("query_key_value.weight"):
        A, K, D = model.num_attention_heads, model.num_key_value_heads, model.head_dim
        parts: tuple[int, ...] = (A * D, K * D, K * D)
    elif name.endswith("experts.gate_up_proj"):
        parts = (rows // 2, rows // 2)
    else:
        parts = (rows,)
    assert sum(parts) == rows, (name, rows, parts)
    return parts


@dataclass(frozen=True, slots=True)
class MuonRule:
    """How an update is made of a gradient and the momentum before."""

    config: MuonConfig
    full_matrix: FullMatrix

    def step_(
        self,
        target: Tensor,
        gradient: Tensor,
        momentum: Tensor,
        parts: Sequence[int],
        *,
        lr: float,
        decay: float,
        weights: Stored | None = None,
        moments: Stored | None = None,
    ) -> None:
        """Change `target` and `momentum` in place.

        target    (M, K) or (E, M, K): what is learnt, or this rank's part of it
        gradient  same shape, any float dtype
        momentum  same shape, dtype of `target`
        parts     rows of each matrix in M
        weights   reads and writes `target`, and `moments` does so with `momentum`; None: they are as computed with
        """
        weights, moments = weights or InPlace(target), moments or InPlace(momentum)
        for here in self._pieces(target, parts):
            kept = moments.read(here).mul_(self.config.momentum).add_(gradient[here])
            update = self._update(target, gradient[here], kept, parts)
            moments.write(here, kept)
            values = weights.read(here).mul_(1 - lr * decay).add_(update, alpha=-lr)
            weights.write(here, values)
            del kept, update, values  # before the next ones are made

    def _update(self, target: Tensor, gradient: Tensor, momentum: Tensor, parts: Sequence[int]) -> Tensor:
        if self.config.nesterov:
            update = gradient.to(torch.float32, copy=True).add_(momentum, alpha=self.config.momentum)
        else:
            update = momentum.to(torch.float32, copy=True)  # which is overwritten
        return self.full_matrix(target, update, lambda whole: self._orthogonalize_(whole, parts))

    def _pieces(self, target: Tensor, parts: Sequence[int]) -> Iterator[slice]:
        """Yield slices of a stack, each small enough for the bound; a matrix is one slice."""
        if target.dim() == 2:
            yield slice(None)
            return
        columns = target.shape[-1]
        working = max(num_temporary_bytes(rows, columns, self._dtype) for rows in parts)
        each = 4 * sum(parts) * columns + working
        step = max(1, min((self.config.chunk_mib << 20) // each, CHUNK // (sum(parts) * columns)))
        aligned = BLOCK_SIZE // math.gcd(BLOCK_SIZE, sum(parts) * columns)  # matrices that end with a block of moments
        step = -(-step // aligned) * aligned
        for first in range(0, len(target), step):
            yield slice(first, first + step)

    def _orthogonalize_(self, update: Tensor, parts: Sequence[int]) -> Tensor:
        """Overwrite (..., M, K) with its orthogonalised parts, each at the root mean square of the configuration."""
        for first, end in pairwise(accumulate(parts, initial=0)):
            part = update[..., first:end, :]
            # An orthogonal matrix has the root mean square 1 / sqrt(its longer side).
            scale = self.config.update_rms * max(part.shape[-2:]) ** 0.5
            part.copy_(orthogonalize(part, self.config.iterations, self._dtype).mul_(scale))
        return update

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
