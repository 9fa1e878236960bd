"""A directory that several ranks write into and that appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

from ling.checkpoint.atomic import atomic_directory
from ling.errors import CheckpointError


@contextmanager
def directory_of_all(target: Path, *, overwrite: bool, together: bool) -> Iterator[tuple[Path, bool]]:
    """Yield the directory that becomes `target`, and whether this process is the first rank.

    together  all ranks enter and leave at once: the first makes the directory, and moves it into place when it leaves
              the block, by when the others must have written what is theirs. What stops the first, stops all.
    """
    if not together:
        with atomic_directory(target, overwrite=overwrite) as partial:
            yield partial, True
        return
    if dist.get_rank() == 0:
        with _told_to_the_others(), atomic_directory(target, overwrite=overwrite) as partial:
            _tell(str(partial))
            yield partial, True
    else:
        partial = Path(_hear())
        with suppress(OSError):  # writing together fails on all ranks: the first says what is to be done
            yield partial, False
        _hear()


@contextmanager
def _told_to_the_others() -> Iterator[None]:
    """Send the other ranks the outcome, since they wait for it."""
    try:
        yield
    except CheckpointError as error:
        _tell(str(error), failed=True)
        raise
    _tell("")


def _tell(text: str, *, failed: bool = False) -> None:
    dist.broadcast_object_list([text, failed], src=0)


def _hear() -> str:
    """Return what the first rank tells; CheckpointError if it failed."""
    told = ["", False]
    dist.broadcast_object_list(told, src=0)
    text, failed = told
    if failed:
        raise CheckpointError(str(text))
    return str(text)
