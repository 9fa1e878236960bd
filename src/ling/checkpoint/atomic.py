"""Directories and files that appear whole or not at all, written by one process at a time.

    .NAME.partial-*   what is being written; renamed to NAME at the end
    .NAME.old         what is being replaced, for the moment between two renames
    .NAME.lock        held while any of this goes on; the system lets go of it when its process dies

What a process that was killed left behind is put right, or cleared away, by the next one with the same target.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from ling.errors import CheckpointError


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool = False, resume: str | None = None) -> Iterator[Path]:
    """Yield an empty directory that becomes `target` when the block ends well, and vanishes when it does not.

    target  must not exist, unless it is empty or `overwrite` is set; missing parents are made
    resume  short name of what is being written: Ctrl-C, or a machine that dies, then leaves the directory as it is, and
            the next call with the same name finds it again
    Raises CheckpointError if it exists, is being written by another process, cannot be written, or the disk fills up.
    """
    target = target.resolve()
    check_free(target, overwrite=overwrite)
    partial = _beside(target, f"partial-{resume or 'new'}")
    kept = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            _put_right(target, overwrite=overwrite)
            try:
                if resume is None:
                    shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(exist_ok=resume is not None)
                yield partial
                _sync(partial)
                check_free(target, overwrite=overwrite)  # it may have been made meanwhile
                _replace(partial, target)
            except KeyboardInterrupt:
                kept = resume is not None
                raise
            finally:
                if not kept:
                    shutil.rmtree(partial, ignore_errors=True)
            for left in target.parent.glob(f".{escape(target.name)}.partial-*"):  # of calls with other settings
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}; nothing was left there") from None


@contextmanager
def atomic_file(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path that becomes `target` when the block ends well, and vanishes when it does not; as above."""
    target = target.resolve()
    check_free_file(target, overwrite=overwrite)
    partial = _beside(target, "partial-new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            try:
                yield partial
                _sync_one(partial)
                check_free_file(target, overwrite=overwrite)  # it may have been made meanwhile
                partial.replace(target)
                _sync_one(target.parent)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}; nothing was left there") from None


def check_free(target: Path, *, overwrite: bool = False) -> None:
    """Raise CheckpointError if `atomic_directory` would refuse `target` for what is there."""
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; choose a directory")
    _check_parents(target)
    if target.resolve().is_mount():
        raise CheckpointError(f"{target} is a mount point, which nothing can take the place of; name a directory in it")
    if target.exists() and not overwrite and any(target.iterdir()):
        raise CheckpointError(f"{target} exists already; choose another target, or allow overwriting it")


def check_free_file(target: Path, *, overwrite: bool = False) -> None:
    """Raise CheckpointError if `atomic_file` would refuse `target` for what is there."""
    if target.is_dir():
        raise CheckpointError(f"{target} is a directory; name a file")
    _check_parents(target)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists already; choose another target, or allow overwriting it")


def _check_parents(target: Path) -> None:
    if (file := next((parent for parent in target.parents if parent.is_file()), None)) is not None:
        raise CheckpointError(f"cannot write {target}: {file} is a file; choose another target")


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the only right to write `target`; CheckpointError if another call has it."""
    import fcntl

    lock = _beside(target, "lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise CheckpointError(f"{target} is being written by another run; wait for it, or choose another") from None
        except OSError:  # a file system without locks
            pass
        if _is_same_file(descriptor, lock):
            break
        os.close(descriptor)  # its owner has finished and removed it
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _put_right(target: Path, *, overwrite: bool) -> None:
    """Undo or finish the replacement of `target` during which a process was killed."""
    old = _beside(target, "old")
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old)
    else:
        old.rename(target)
        check_free(target, overwrite=overwrite)


def _replace(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = _beside(target, "old")
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
