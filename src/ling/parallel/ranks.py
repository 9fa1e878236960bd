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
from ling.parallel.layout import Layout
from ling.parallel.recompute import recompute_block


class Ranks:
    """The ranks of a layout as one of them sees them. All of them make theirs at the same time."""

    def __init__(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        size = dist.get_world_size() if dist.is_initialized() else 1
        assert size == layout.world_size, (size, layout)
        self.device = torch.device(device)
        self.dense: DeviceMesh | None = None
        """(replicate, shard)."""
        self.sparse: DeviceMesh | None = None
        """(expert_replicate, expert_shard, expert), over the same ranks."""
        if dist.is_initialized():
            kind = self.device.type
            self.dense = init_device_mesh(kind, (layout.replicate, layout.shard), mesh_dim_names=("replicate", "shard"))
            sizes = layout.expert_replicate, layout.expert_shard, layout.expert
            names = "expert_replicate", "expert_shard", "expert"
            self.sparse = init_device_mesh(kind, sizes, mesh_dim_names=names)

    @property
    def data_rank(self) -> int:
        """Which share of the data this rank reads, of `data_size`."""
        return self.layout.data_rank(self.rank)

    @property
    def data_size(self) -> int:
        return self.layout.data_size

    @property
    def run(self) -> dict[str, Callable[..., Any]]:
        """What the model's forward is called with beside the batch."""
        return {"run": recompute_block} if self.layout.recompute == "full" else {}

    def sum_integers(self, numbers: Sequence[int]) -> list[int]:
        """Add numbers up over all data-parallel ranks."""
        if self._data_group is None:
            return list(numbers)
        (total,) = sum_over([torch.tensor(numbers, dtype=torch.int64, device=self.device)], self._data_group)
        return [int(n) for n in total.tolist()]

    def sum_tensors(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Add tensors of one dtype up over all data-parallel ranks, in one exchange; detached."""
        if self._data_group is None:
            return [tensor.detach() for tensor in tensors]
        return sum_over(tensors, self._data_group)

    def sum_counts(self, counts: dict[int, Tensor]) -> dict[int, Tensor]:
        """Add the tokens per expert of each layer up over all data-parallel ranks."""
        return dict(zip(counts, self.sum_tensors(list(counts.values()))))

    @torch.no_grad()
    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Scale gradients so that their norm over all ranks and parameters is `largest` at most; 0 only measures.

        return  () float32, the norm before; the same on every rank

        Each rank adds up the squares of what it holds, each divided by the number of ranks that hold the same; one
        exchange over all ranks gives the rest, whatever meshes the parameters lie on.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        squares = [_local(g).float().square().sum() / _copies(g, self.layout.world_size) for g in gradients]
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
    def _data_group(self) -> ProcessGroup | None:
        return self._all_group  # every axis there is so far divides the data

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
