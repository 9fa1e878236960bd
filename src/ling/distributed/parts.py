"""Which part of a tensor this rank holds: all of it, or what torch's DTensor says.

Ranks cut tensors evenly, along a dim for each axis of a mesh, the last of them getting what is left. What is not
shared is a plain tensor, and a process that has no others never imports the class.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return type(tensor).__name__ == "DTensor" or hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part, which shares its memory: enough for what is done element by element."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return what this rank holds of `whole`, a view of it, where `like` of the same shape is shared."""
    if is_sharded(like):
        assert whole.shape == like.shape, (whole.shape, like.shape)
        for dim, (start, size) in enumerate(zip(*_chunk(like), strict=True)):
            whole = whole.narrow(dim, start, size)
    return whole


def first_element(tensor: Tensor) -> int:
    """Return which of all elements this rank's part begins with; ranks cut the first dim alone."""
    if not is_sharded(tensor):
        return 0
    offsets, sizes = _chunk(tensor)
    assert tuple(sizes[1:]) == tuple(tensor.shape[1:]), (sizes, tensor.shape)
    return int(offsets[0]) * math.prod(tensor.shape[1:])


def rows_of_parts(tensor: Tensor) -> list[int]:
    """Return the rows of a part after each cut of the first dim; every part begins at a sum of their multiples."""
    sharded: Any = tensor
    cuts = [(p, i) for i, p in enumerate(getattr(tensor, "placements", ())) if not p.is_replicate()]
    if any(hasattr(placement, "split_factor") for placement, _ in cuts):  # FSDP's, of what others have cut before
        cuts.reverse()
    rows, found = tensor.shape[0], []
    for placement, axis in cuts:
        assert placement.dim == 0, placement
        if (size := sharded.device_mesh.size(axis)) > 1:
            rows = -(-rows // size)
            found.append(rows)
    return found


def shared_as(like: Tensor, part: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of `shape`, cut as `like` is, of which this rank has `part`; `part` where nothing is shared."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    whole = DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=tuple(strides))
    assert tuple(_chunk(whole)[1]) == tuple(part.shape), (tuple(shape), placements, tuple(part.shape))
    return whole


def sum_over_parts(values: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return the sums of what ranks found in their parts of tensors, each part counted once.

    values  (n,) what this rank found in its part of each of n `tensors`; all that share them call this at once
    return  (n,) the same bits on every rank that has the same part of a tensor
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        if is_sharded(tensor):
            alike[tensor.device_mesh, tuple(tensor.placements)].append(i)  # type: ignore[attr-defined]
    sums = values.clone()
    for (mesh, placements), places in alike.items():
        total, copies = values[places], 1
        # Copies last: whatever order parts were added up in, those of one part then have the same bits.
        for axis, placement in sorted(enumerate(placements), key=lambda place: bool(place[1].is_replicate())):
            dist.all_reduce(total, group=mesh.get_group(axis))
            copies *= mesh.size(axis) if placement.is_replicate() else 1
        sums[places] = total / copies
    return sums


def _chunk(tensor: Tensor) -> tuple[Sequence[int], Sequence[int]]:
    """Return offsets and sizes of this rank's part."""
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[attr-defined]
    return chunk.offsets, chunk.sizes
