"""Directories and files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ling.errors import CheckpointError


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool = False, resume: str | None = None) -> Iterator[Path]:
    """Yield an empty directory that becomes `target` when the block ends well, and vanishes when it does not.

    target  must not exist, unless it is empty or `overwrite` is set; missing parents are made
    resume  short name of what is being written: Ctrl-C, or a machine that dies, then leaves the directory as it is, and
            the next call with the same name finds it again
    Raises CheckpointError if it exists, cannot be written, or the disk fills up.
    """
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; choose a directory")
    if target.exists() and not overwrite and any(target.iterdir()):
        raise CheckpointError(f"{target} exists already; choose another target, or allow overwriting it")
    partial = target.with_name(f".{target.name}.partial-{resume or os.getpid()}")
    kept = False
    try:
        partial.mkdir(parents=True, exist_ok=resume is not None)
        yield partial
        _sync(partial)
        _replace(partial, target)
    except KeyboardInterrupt:
        kept = resume is not None
        raise
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}; nothing was left there") from None
    finally:
        if not kept:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path that becomes `target` when the block ends well, and vanishes when it does not; as above."""
    target = target.resolve()
    if target.is_dir():
        raise CheckpointError(f"{target} is a directory; name a file")
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists already; choose another target, or allow overwriting it")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync_one(partial)
        partial.replace(target)
        _sync_one(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}; nothing was left there") from None
    finally:
        partial.unlink(missing_ok=True)


def _replace(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        target.rename(old)
        new.rename(target)
    finally:
        if old.exists() and not target.exists():  # interrupted in between
            old.rename(target)
    shutil.rmtree(old)


def _sync(directory: Path) -> None:
    """Ask the disk to keep every file, so that a rename never outlives the data it names."""
    for path in (*directory.rglob("*"), directory):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
