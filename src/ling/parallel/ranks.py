"""This process in a layout: its meshes, its share of the data, and what it agrees on with the others.

Gradients follow one rule, the pure sum: every loss is divided by numbers of the whole step, which `sum_integers` makes
known before backward, so gradients and losses of microbatches and ranks are only ever added up, never averaged.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import DeviceMesh, ProcessGroup, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from ling.distributed.collectives import sum_over
from ling.model.batch import PackedBatch
from ling.parallel.context import ContextBatch, even_split
from ling.parallel.recompute import recompute_block
from ling.scaling.layout import Layout


class Ranks:
    """The ranks of a layout as one of them sees them. All of them make theirs at the same time."""

    def __init__(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        size = dist.get_world_size() if dist.is_initialized() else 1
        assert size == layout.gpus, (size, layout)
        self.device = torch.device(device)
        self.dense: DeviceMesh | None = None
        """(replicate, shard): what weights outside the experts are sharded over."""
        self.sparse: DeviceMesh | None = None
        """(replicate, expert_shard, expert), over the same ranks."""
        self.context: ProcessGroup | None = None
        """Ranks that share out the tokens of one microbatch; None: this one has all."""
        if dist.is_initialized():
            kind, R, shards, C = self.device.type, layout.data_parallel_replicate, layout.weight_shards, layout.context
            self.dense = init_device_mesh(kind, (R, shards), mesh_dim_names=("replicate", "shard"))
            sizes, names = (R, layout.expert_shards, layout.expert), ("replicate", "expert_shard", "expert")
            self.sparse = init_device_mesh(kind, sizes, mesh_dim_names=names)
            if C > 1:
                tokens = init_device_mesh(kind, (size // C, C), mesh_dim_names=("data", "context"))
                self.context = tokens["context"].get_group()

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that speaks for all."""
        return self.rank == 0

    @property
    def shards(self) -> bool:
        """Whether the model's tensors are sharded, if only over this rank."""
        return self.dense is not None

    @property
    def data_rank(self) -> int:
        """Which share of the data this rank reads, of `data_size`."""
        return self.layout.data_rank(self.rank)

    @property
    def data_size(self) -> int:
        return self.layout.data_parallel

    @property
    def run(self) -> dict[str, Callable[..., Any]]:
        """What the model's forward is called with beside the batch."""
        return {"run": recompute_block} if self.layout.recompute == "full" else {}

    def share(self, batch: PackedBatch, count: int) -> tuple[slice, PackedBatch | ContextBatch]:
        """Return which of `count` tokens of a pack are this rank's, and the pack as it sees it."""
        if self.context is None:
            return slice(0, count), batch
        sizes = even_split(count, self.layout.context)
        start = sum(sizes[: self.context.rank()])
        here = slice(start, start + sizes[self.context.rank()])
        ahead = None if batch.mtp_ids is None else batch.mtp_ids[:, here]
        return here, ContextBatch(batch.rows, sizes, self.context, ahead)

    def sum_integers(self, numbers: Sequence[int]) -> list[int]:
        """Add numbers up over all ranks."""
        if self._all_group is None:
            return list(numbers)
        (total,) = sum_over([torch.tensor(numbers, dtype=torch.int64, device=self.device)], self._all_group)
        return [int(n) for n in total.tolist()]

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Return whether any rank wants to stop, and the first rank's clock, so that all of them decide alike."""
        told = torch.tensor([float(stop), seconds if self.is_first else 0.0], dtype=torch.float64, device=self.device)
        stops, clock = self.sum_tensors([told])[0].tolist()
        return stops > 0, clock

    def sum_tensors(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Add tensors of one dtype up over all ranks, in one exchange; detached."""
        if self._all_group is None:
            return [tensor.detach() for tensor in tensors]
        return sum_over(tensors, self._all_group)

    def sum_counts(self, counts: dict[int, Tensor]) -> dict[int, Tensor]:
        """Add the tokens per expert of each layer up over all ranks."""
        return dict(zip(counts, self.sum_tensors(list(counts.values()))))

    @torch.no_grad()
    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Scale gradients so that their norm over all ranks and parameters is `largest` at most; 0 only measures.

        return  () float32, the norm before; the same on every rank

        Each rank adds up the squares of what it holds, each divided by the number of ranks that hold the same; one
        exchange over all ranks gives the rest, whatever meshes the parameters lie on.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        squares = [_local(g).float().square().sum() / _copies(g, self.layout.gpus) for g in gradients]
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=self.device)
        if self._all_group is not None:
            dist.all_reduce(total, group=self._all_group)
        norm = total.sqrt()
        if largest:
            scale = (largest / (norm + 1e-6)).clamp(max=1.0)  # torch's own epsilon
            for gradient in gradients:
                _local(gradient).mul_(scale)
        return norm

    @property
    def _all_group(self) -> ProcessGroup | None:
        return dist.group.WORLD if dist.is_initialized() else None


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copies(tensor: Tensor, world_size: int) -> int:
    """Return how many ranks hold the same part of a tensor."""
    if not isinstance(tensor, DTensor):
        return world_size
    mesh, copies = tensor.device_mesh, 1
    for axis, placement in enumerate(tensor.placements):
        assert not placement.is_partial(), tensor.placements
        copies *= mesh.size(axis) if isinstance(placement, Replicate) else 1
    return copies * (world_size // mesh.size())
