"""What lies on disk against what the hub says of it: sizes, and hashes on request."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from ling.checkpoint.hub.wanted import MODELS, missing_files
from ling.errors import CheckpointError
from ling.hub import Listing, Told, check_sizes, damaged

_CHUNK = 2**22


def check_snapshot(directory: Path, listing: Listing) -> None:
    """Raise CheckpointError if a needed file is missing or has another size."""
    if lost := missing_files(directory):
        raise CheckpointError(f"{directory} lacks {lost[0]}; run the same command again")
    check_sizes(directory, listing, MODELS)


def verify_snapshot(directory: Path, listing: Listing, progress: Callable[[int, int], None] | None = None) -> int:
    """Compare the content of every file with the hub's hash; return how many had one.

    progress  called with (bytes read, bytes in all)
    Raises CheckpointError that names the first file which differs.
    """
    check_snapshot(directory, listing)
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
            raise damaged(file, "is not what the hub has", MODELS)
    return len(hashed)


def _start(told: Told, size: int) -> "hashlib._Hash":
    if told.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # git's name of a file
