"""Write a distributed checkpoint piece by piece: only one of its tensors is in memory at a time.

torch's saver plans with the sizes of tensors and asks for their values one by one while it writes. So it is given
tensors without memory, and each is put together when it is asked for.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
    *,
    workers: int = 1,
) -> None:
    """Write every piece of `source` into `directory` at the places of `layout`.

    dtype_of  what a piece is stored as; a tensor of several takes the type that holds them all
    advance   is called with the number of pieces that are newly there
    workers   threads that put tensors together ahead of the one that is written, each with the source opened for itself
    """
    parts: dict[str, list[tuple[Piece, Place]]] = {}
    for piece in published_pieces(source.config):
        place = layout(piece)
        parts.setdefault(place.key, []).append((piece, place))

    def widest(key: str) -> torch.dtype:
        return functools.reduce(torch.promote_types, (dtype_of(piece) for piece, _ in parts[key]))

    dtypes = {key: widest(key) for key in parts}
    own = threading.local()

    def build(key: str) -> Tensor:
        if not hasattr(own, "source"):  # of this thread
            own.source = source.reopen()
        whole = torch.empty(parts[key][0][1].shape, dtype=dtypes[key])
        for piece, place in parts[key]:
            place.put(whole, own.source.read(piece))
            advance(1)
        return whole

    empty = {key: torch.empty(own[0][1].shape, dtype=dtypes[key], device="meta") for key, own in parts.items()}
    with ThreadPoolExecutor(workers) as pool:
        try:
            save_tensors(directory, empty, _LazyPlanner(_Ahead(build, list(parts), pool, workers)))
        finally:
            pool.shutdown(cancel_futures=True)


class _Ahead:
    """Builds tensors in the order they are going to be asked for, `count` at a time."""

    def __init__(self, build: Callable[[str], Tensor], keys: list[str], pool: ThreadPoolExecutor, count: int) -> None:
        self._build = build
        self._index = {key: i for i, key in enumerate(keys)}
        self._keys = keys
        self._pool = pool
        self._count = count
        self._begun: dict[str, Future[Tensor]] = {}

    def __call__(self, key: str) -> Tensor:
        start = self._index[key]
        for following in self._keys[start : start + self._count]:
            if following not in self._begun:
                self._begun[following] = self._pool.submit(self._build, following)
        future, self._begun[key] = self._begun[key], Future()  # not held beyond the caller's use
        return future.result()


class _LazyPlanner(DefaultSavePlanner):
    """torch's planner, with tensors made when they are written."""

    def __init__(self, build: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._build = build

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._build(write_item.index.fqn)
