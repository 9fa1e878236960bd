"""A directory that several ranks write into and that appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist
from torch.distributed import ProcessGroup

from ling.checkpoint.atomic import atomic_directory
from ling.errors import CheckpointError


@contextmanager
def directory_of_all(
    target: Path, *, overwrite: bool, together: bool, group: ProcessGroup | None = None
) -> Iterator[tuple[Path, bool]]:
    """Yield the directory that becomes `target`, and whether this process is the first rank.

    together  all ranks enter and leave at once: the first makes the directory, and moves it into place when it leaves
              the block, by when the others must have written what is theirs. What stops the first, stops all.
    group     of all ranks, over which they talk; None: the default one
    """
    if not together:
        with atomic_directory(target, overwrite=overwrite) as partial:
            yield partial, True
        return
    if dist.get_rank() == 0:
        with _told_to_the_others(group), atomic_directory(target, overwrite=overwrite) as partial:
            _tell(str(partial), group)
            yield partial, True
    else:
        partial = Path(_hear(group))
        with suppress(OSError):  # writing together fails on all ranks: the first says what is to be done
            yield partial, False
        _hear(group)


@contextmanager
def _told_to_the_others(group: ProcessGroup | None) -> Iterator[None]:
    """Send the other ranks the outcome, since they wait for it."""
    try:
        yield
    except CheckpointError as error:
        _tell(str(error), group, failed=True)
        raise
    _tell("", group)


def _tell(text: str, group: ProcessGroup | None, *, failed: bool = False) -> None:
    dist.broadcast_object_list([text, failed], src=0, group=group)


def _hear(group: ProcessGroup | None) -> str:
    """Return what the first rank tells; CheckpointError if it failed."""
    told = ["", False]
    dist.broadcast_object_list(told, src=0, group=group)
    text, failed = told
    if failed:
        raise CheckpointError(str(text))
    return str(text)
