"""This process in a layout: its meshes, its share of the data, and what it agrees on with the others.

Gradients follow one rule, the pure sum: every loss is divided by numbers of the whole step, which `sum_integers` makes
known before backward, so gradients and losses of microbatches and ranks are only ever added up, never averaged.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import DeviceMesh, ProcessGroup, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from ling.distributed.collectives import sum_over
from ling.model import CausalLM, ModelOutput
from ling.model.batch import PackedBatch
from ling.ops.cross_entropy import IGNORE
from ling.ops.gradient_norm import sum_of_squares
from ling.parallel.context import ContextBatch, even_split
from ling.parallel.pipeline import Stage
from ling.parallel.recompute import recompute_block
from ling.parallel.tensor import TokenRuns
from ling.scaling.layout import Layout


class Share(NamedTuple):
    """What one rank has of a pack."""

    tokens: slice
    """Which of the pack's are here."""
    positions: slice
    """Those that attention's projections see here: of all tensor ranks."""
    batch: PackedBatch | ContextBatch
    token_runs: tuple[int, ...]
    """Tokens of each tensor rank in `positions`; empty where there is one."""


class Ranks:
    """The ranks of a layout as one of them sees them. All of them make theirs at the same time."""

    def __init__(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        size = dist.get_world_size() if dist.is_initialized() else 1
        assert size == layout.gpus, (size, layout)
        self.device = torch.device(device)
        self.dense: DeviceMesh | None = None
        """([pipeline,] replicate, shard): what weights are sharded over that ranks gather whole."""
        self.split: DeviceMesh | None = None
        """([pipeline,] replicate, shard, tensor), over the same ranks: for those that tensor ranks have in pieces."""
        self.sparse: DeviceMesh | None = None
        """([pipeline,] replicate, expert_shard, expert), over the same ranks."""
        self.context: ProcessGroup | None = None
        """Ranks that share out the tokens of one microbatch; None: this one, with its tensor ranks, has all."""
        self.token_runs: TokenRuns | None = None
        """The tensor ranks, which share out what is left."""
        self.stage = Stage(layout, self.rank, self.device)
        """The layers that are here."""
        if dist.is_initialized():
            R, C, T = layout.data_parallel_replicate, layout.context, layout.tensor
            self.dense = self._mesh(replicate=R, shard=layout.token_ranks)
            self.sparse = self._mesh(replicate=R, expert_shard=layout.expert_shards, expert=layout.expert)
            if C > 1:
                self.context = self._mesh(data=layout.data_parallel, context=C, tensor=T)["context"].get_group()
            if T > 1:
                self.split = self._mesh(replicate=R, shard=layout.weight_shards, tensor=T)
                self.token_runs = TokenRuns(self.split["tensor"].get_group())

    def _mesh(self, **axes: int) -> DeviceMesh:
        """Return a mesh over all ranks; each stage's part of it has the named axes."""
        stages = {"pipeline": self.layout.pipeline} if self.layout.pipeline > 1 else {}
        named = stages | axes
        return init_device_mesh(self.device.type, tuple(named.values()), mesh_dim_names=tuple(named))

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

    def run(
        self,
        model: CausalLM,
        tokens: Tensor,
        positions: Tensor,
        batch: PackedBatch | ContextBatch,
        token_runs: Sequence[int] = (),
    ) -> ModelOutput:
        """Call the model with what `share` gave."""
        self.turn_to(token_runs)
        again = {"run": recompute_block} if self.layout.recompute == "full" else {}
        output: ModelOutput = model(tokens, positions, batch, **again)
        return output

    def turn_to(self, token_runs: Sequence[int]) -> None:
        """Make ready for a pass of the microbatch whose tokens are shared out so; backward may run blocks again."""
        if self.token_runs is not None:
            self.token_runs.sizes = list(token_runs)

    def share(self, batch: PackedBatch, count: int) -> Share:
        """Return what is this rank's of a pack of `count` tokens: a run of its context's run of them."""
        C, T = self.layout.context, self.layout.tensor
        if not self.stage.is_last:
            batch = PackedBatch(batch.rows)  # the MTP layers are on the last stage
        if C * T == 1:
            return Share(slice(0, count), slice(0, count), batch, ())
        runs = even_split(count, C * T)
        sizes = [sum(runs[c * T : (c + 1) * T]) for c in range(C)]
        c = 0 if self.context is None else self.context.rank()
        t = 0 if self.token_runs is None else self.token_runs.group.rank()
        first, start = sum(sizes[:c]), sum(runs[: c * T + t])
        here = slice(start, start + runs[c * T + t])
        ahead = None if batch.mtp_ids is None else batch.mtp_ids[:, here]
        seen = (
            PackedBatch(batch.rows, ahead)
            if self.context is None
            else ContextBatch(batch.rows, sizes, self.context, ahead)
        )
        token_runs = tuple(runs[c * T : (c + 1) * T]) if T > 1 else ()
        return Share(here, slice(first, first + sizes[c]), seen, token_runs)

    def share_labels(self, labels: Tensor) -> Tensor:
        """Return the labels that count here: those of the last stage, where losses are computed."""
        return labels if self.stage.is_last else torch.full_like(labels, IGNORE)

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

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of each of `values` over all ranks; what is not a number counts as infinite."""
        found = torch.where(values.isnan(), torch.inf, values.detach())
        if self._all_group is not None:
            dist.all_reduce(found, dist.ReduceOp.MAX, self._all_group)
        return found

    def sum_counts(self, counts: Mapping[int, Tensor], layers: Sequence[int], num_experts: int) -> dict[int, Tensor]:
        """Add the tokens per expert of each of `layers` up over all ranks; other stages have other layers."""
        nothing = torch.zeros(num_experts, dtype=torch.int64, device=self.device)
        return dict(zip(layers, self.sum_tensors([counts.get(layer, nothing) for layer in layers])))

    @torch.no_grad()
    def clip_grad_norm_(self, model: CausalLM, largest: float) -> Tensor:
        """Scale gradients so that their norm over all ranks and parameters is `largest` at most; 0 only measures.

        return  () float32, the norm before; the same on every rank
        """
        norm = self.sum_of_squares(model, list(model.parameters())).sqrt()
        if largest:
            scale = (largest / (norm + 1e-6)).clamp(max=1.0)  # torch's own epsilon
            for parameter in model.parameters():
                if parameter.grad is not None:
                    _local(parameter.grad).mul_(scale)
        return norm

    @torch.no_grad()
    def sum_of_squares(self, model: CausalLM, parameters: Sequence[Tensor], piece: int = 0) -> Tensor:
        """Add up the squares of the gradients of some of `model`'s parameters over all ranks.

        piece   elements that are squared at once; 0: all of a gradient's
        return  () float32, the same on every rank

        Each rank adds up the squares of what it holds, each divided by the number of ranks that hold the same; one
        exchange over all ranks gives the rest, whatever meshes the parameters lie on.
        """
        twice = model.model.word_embeddings.weight if self.stage.has_copy(model.config) else None
        by_copies: dict[int, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            if (gradient := parameter.grad) is not None:
                held = _local(gradient)
                copies = _copies(gradient, self.layout.stage_ranks) * (1 + (parameter is twice))
                by_copies[copies] += held.reshape(-1).split(piece) if piece else [held]
        total = torch.zeros((), device=self.device)
        for copies, pieces in by_copies.items():
            total += sum_of_squares(pieces) / copies
        if self._all_group is not None:
            dist.all_reduce(total, group=self._all_group)
        return total

    @property
    def _all_group(self) -> ProcessGroup | None:
        return dist.group.WORLD if dist.is_initialized() else None


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copies(tensor: Tensor, stage_ranks: int) -> int:
    """Return how many ranks of a stage hold the same part of a tensor."""
    if not isinstance(tensor, DTensor):
        return stage_ranks
    mesh, copies = tensor.device_mesh, 1
    for axis, placement in enumerate(tensor.placements):
        assert not placement.is_partial(), tensor.placements
        copies *= mesh.size(axis) if isinstance(placement, Replicate) else 1
    return copies * (stage_ranks // mesh.size())
