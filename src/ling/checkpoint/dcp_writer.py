"""Write a distributed checkpoint piece by piece: only one of its tensors is in memory at a time.

torch's saver plans with the sizes of tensors and asks for their values one by one while it writes. So it is given
tensors without memory, and each is put together when it is asked for.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem

from ling.checkpoint.dcp import save_tensors
from ling.checkpoint.layout import Layout, Place
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.pieces import PieceSource


def write_pieces(
    source: PieceSource,
    directory: Path,
    layout: Layout,
    dtype_of: Callable[[Piece], torch.dtype],
    advance: Callable[[int], None],
) -> None:
    """Write every piece of `source` into `directory` at the places of `layout`.

    dtype_of  what a piece is stored as; the pieces of one tensor must agree
    advance   is called with the number of pieces that are newly there
    """
    parts: dict[str, list[tuple[Piece, Place]]] = {}
    for piece in published_pieces(source.config):
        place = layout(piece)
        parts.setdefault(place.key, []).append((piece, place))

    def build(key: str) -> Tensor:
        first_piece, first_place = parts[key][0]
        whole = torch.empty(first_place.shape, dtype=dtype_of(first_piece))
        for piece, place in parts[key]:
            place.put(whole, source.read(piece))
            advance(1)
        return whole

    empty = {key: torch.empty(own[0][1].shape, dtype=dtype_of(own[0][0]), device="meta") for key, own in parts.items()}
    save_tensors(directory, empty, _LazyPlanner(build))


class _LazyPlanner(DefaultSavePlanner):
    """torch's planner, with tensors made when they are written."""

    def __init__(self, build: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._build = build

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._build(write_item.index.fqn)
