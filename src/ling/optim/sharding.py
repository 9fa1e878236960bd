"""What optimizers need to know of parameters that ranks share: nothing, or torch's DTensor."""

from typing import Any

from torch import Tensor

from ling.optim.muon import Orthogonalize


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; a process that has none never imports the class."""
    return type(tensor).__name__ == "DTensor" or hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part, which shares its memory: enough for what is done element by element."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def has_whole_matrices(tensor: Tensor) -> bool:
    """Whether this rank's part of a stack consists of whole matrices: the stack alone is cut, or nothing."""
    placements: Any = getattr(tensor, "placements", ())
    return tensor.dim() == 3 and all(p.is_replicate() or p.is_shard(0) for p in placements)


def through_full_matrix(parameter: Tensor, update: Tensor, orthogonalize: Orthogonalize) -> Tensor:
    """Orthogonalise an update; parts of a matrix are gathered first, and each rank keeps its own part.

    Every rank does the same work. It is the plain way; a layout may bring a better one as `full_matrix`.
    """
    if not is_sharded(update):
        return orthogonalize(update)
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = update
    whole = orthogonalize(sharded.full_tensor())
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)


def row(tensor: Tensor, index: int) -> Tensor | None:
    """Return row `index` of a matrix, sharing its memory; None if another rank has it.

    The rows may be cut evenly over any axes of a mesh (`Shard(0)`), one within the other.
    """
    first, length = 0, tensor.shape[0]
    sharded: Any = tensor
    for axis, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard(0):
            size = -(-length // sharded.device_mesh.size(axis))
            offset = min(length, size * sharded.device_mesh.get_local_rank(axis))
            first, length = first + offset, min(size, length - offset)
    return local(tensor)[index - first] if first <= index < first + length else None
