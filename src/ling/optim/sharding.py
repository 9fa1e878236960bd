"""What optimizers need to know of parameters that ranks share: nothing, or torch's DTensor."""

from typing import Any

from torch import Tensor

from ling.distributed.parts import is_sharded, local, rows_of_parts, shared_as
from ling.errors import ConfigError
from ling.optim.moments import BLOCK_SIZE, rows_of_block
from ling.optim.muon import FullMatrix, Orthogonalize


def check_parts(parameter: Tensor, name: str, moments: str) -> None:
    """Refuse ranks that would cut through blocks of moments; sizes decide, so all of them do so together."""
    rows = rows_of_block(parameter.shape)
    if cut := [part for part in rows_of_parts(parameter) if part % rows and part < parameter.shape[0]]:
        raise ConfigError(
            f"optim.moments {moments} has a scale per {BLOCK_SIZE} neighbours, so ranks share out {name} "
            f"{tuple(parameter.shape)} in multiples of {rows} rows, but parts of {cut[0]} are asked for; use another "
            "number of ranks, or optim.moments=bfloat16"
        )


def has_whole_matrices(tensor: Tensor) -> bool:
    """Whether this rank's part of a stack consists of whole matrices: the stack alone is cut, or nothing."""
    placements: Any = getattr(tensor, "placements", ())
    return tensor.dim() == 3 and all(p.is_replicate() or p.dim == 0 for p in placements)


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


def of_parts(full_matrix: FullMatrix, like: Tensor) -> FullMatrix:
    """Return `full_matrix` for updates of which this rank has its part of `like`, as it has of small states."""

    def through(parameter: Tensor, update: Tensor, orthogonalize: Orthogonalize) -> Tensor:
        return local(full_matrix(like, shared_as(like, update, like.shape), orthogonalize))

    return through


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
