"""What lies on disk against what the hub says of it: sizes, and hashes on request."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from ling.checkpoint.hub.wanted import Listing, Told, missing_files
from ling.errors import CheckpointError

_CHUNK = 2**22


def check_sizes(directory: Path, listing: Listing) -> None:
    """Raise CheckpointError if a needed file is missing or has another size."""
    if lost := missing_files(directory):
        raise CheckpointError(f"{directory} lacks {lost[0]}; run the same command again")
    for path, told in listing.items():
        file = directory / path
        if not file.is_file():
            raise CheckpointError(f"{directory} lacks {path}; run the same command again")
        if told.size is not None and file.stat().st_size != told.size:
            raise _damaged(file, f"has {file.stat().st_size:,} bytes, the hub's {told.size:,}")


def verify_snapshot(directory: Path, listing: Listing, progress: Callable[[int, int], None] | None = None) -> int:
    """Compare the content of every file with the hub's hash; return how many had one.

    progress  called with (bytes read, bytes in all)
    Raises CheckpointError that names the first file which differs.
    """
    check_sizes(directory, listing)
    hashed = {path: told for path, told in listing.items() if told.sha256 or told.git_sha1}
    total = sum((directory / path).stat().st_size for path in hashed)
    done = 0
    for path, told in hashed.items():
        file = directory / path
        digest = _start(told, file.stat().st_size)
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        if digest.hexdigest() != (told.sha256 or told.git_sha1):
            raise _damaged(file, "is not what the hub has")
    return len(hashed)


def _start(told: Told, size: int) -> "hashlib._Hash":
    if told.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # git's name of a file


def _damaged(file: Path, how: str) -> CheckpointError:
    return CheckpointError(f"{file.name} {how}: delete {file.resolve()} and run ling download again")
