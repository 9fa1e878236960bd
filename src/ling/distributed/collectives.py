"""Exchanges between the ranks of a group."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup


def all_to_all_rows(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup) -> Tensor:
    """Send each rank its rows and return those that the ranks sent here; the gradient travels back the same way.

    rows      (S, ...)  those for rank 0 first, any dtype: float8 travels as bytes, which gloo needs
    sent      rows for each rank, S in sum; may be 0
    received  rows from each rank, M in sum: what `exchange_counts(sent)` gives
    return    (M, ...)  those from rank 0 first
    """
    assert sum(sent) == len(rows), (list(sent), tuple(rows.shape))
    received_rows: Tensor = _AllToAllRows.apply(rows, list(sent), list(received), group)
    return received_rows


def gather_rows(rows: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """Return the rows of all ranks, in order; the gradients that the ranks have for them are added up on the way back.

    rows    (n, ...)
    sizes   rows of each rank, n of them here
    return  (N, ...)  N = sum(sizes)
    """
    gathered: Tensor = _GatherRows.apply(rows, list(sizes), group)
    return gathered


def sum_and_split_rows(rows: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """Add up what all ranks have for the same rows and return this rank's run of them: `gather_rows` backwards.

    rows    (N, ...)
    sizes   rows that each rank keeps, N in sum
    return  (n, ...)
    """
    kept: Tensor = _SumAndSplitRows.apply(rows, list(sizes), group)
    return kept


def exchange_counts(counts: Tensor, group: ProcessGroup) -> Tensor:
    """Tell each rank its numbers and return those that the ranks told this one: (W, ...) int64 -> (W, ...)."""
    told = torch.empty_like(counts)
    dist.all_to_all_single(told, counts, group=group)
    return told


def sum_over(tensors: Sequence[Tensor], group: ProcessGroup) -> list[Tensor]:
    """Return the sums of `tensors` over all ranks, in one exchange; all of one dtype and detached."""
    if not tensors:
        return []
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    assert all(tensor.dtype == flat.dtype for tensor in tensors), {tensor.dtype for tensor in tensors}
    dist.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]


class _AllToAllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
        ctx.way_back = received, sent, group
        return _exchange(rows, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(gradient, *ctx.way_back), None, None, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
        ctx.way_back = sizes, group
        return _gather(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _sum_and_split(gradient, *ctx.way_back), None, None


class _SumAndSplitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
        ctx.way_back = sizes, group
        return _sum_and_split(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _gather(gradient, *ctx.way_back), None, None


def _gather(rows: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    """All-gather runs of nearly one length, padded to the longest, since backends want equal parts."""
    longest = max(sizes)
    out = rows.new_empty(group.size() * longest, *rows.shape[1:])
    dist.all_gather(list(out.split(longest)), _padded(rows.contiguous(), longest), group=group)
    if min(sizes) == longest:
        return out
    return torch.cat([part[:size] for part, size in zip(out.split(longest), sizes)])


def _sum_and_split(rows: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    longest, here = max(sizes), sizes[group.rank()]
    out = rows.new_empty(longest, *rows.shape[1:])
    dist.reduce_scatter(out, [_padded(part.contiguous(), longest) for part in rows.split(sizes)], group=group)
    return out if here == longest else out[:here].clone()


def _padded(rows: Tensor, length: int) -> Tensor:
    more = length - len(rows)
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(_as_sent(out), _as_sent(rows.contiguous()), received, sent, group=group)
    return out


def _as_sent(tensor: Tensor) -> Tensor:
    is_float8 = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.view(torch.uint8) if is_float8 else tensor
