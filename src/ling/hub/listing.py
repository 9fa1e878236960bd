"""What a hub says of the files of a repository, beside what lies on disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ling.errors import LingError
from ling.hub.huggingface import Kind

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""What a repository is called: owner/name."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a hub says of a file."""

    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None
    """Of small files: git's name of the content."""


Listing = Mapping[str, Told]
"""A repository's files, by path."""


def check_sizes(directory: Path, listing: Listing, kind: Kind) -> None:
    """Raise an error of the kind's class if a file is missing or has another size."""
    for path, told in listing.items():
        file = directory / path
        if not file.is_file():
            raise kind.error(f"{directory} lacks {path}; run the same command again")
        if told.size is not None and file.stat().st_size != told.size:
            raise damaged(file, f"has {file.stat().st_size:,} bytes, the hub's {told.size:,}", kind)


def damaged(file: Path, how: str, kind: Kind) -> LingError:
    """Return the error for a file that is not what the hub has."""
    return kind.error(f"{file.name} {how}: delete {file.resolve()} and run {kind.command} again")
