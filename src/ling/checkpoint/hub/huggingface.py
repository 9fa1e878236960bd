"""Models on Hugging Face, through its client library and its cache."""

import re
from pathlib import Path

from ling.checkpoint.hub.wanted import MODELS, choose, read_index
from ling.checkpoint.source import INDEX_NAME
from ling.hub import SECONDS, Listing, Told, client, one_line

TITLE = "Hugging Face"


def cached(name: str, revision: str | None = None) -> Path | None:
    """Return the directory of a model in the cache, whole or not; None if nothing of it is there."""
    snapshot_download = client().snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=["config.json"])
        return Path(str(found))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def fetch(name: str, revision: str | None = None) -> tuple[Path, Listing]:
    """Download what is needed of a model; return its directory and what the hub says of each file.

    Raises CheckpointError in one line if the hub does not answer within seconds, or refuses.
    """
    library = client()
    with one_line(name, MODELS):
        info = library.HfApi().model_info(name, revision=revision, files_metadata=True, timeout=SECONDS)
        told = {
            s.rfilename: Told(s.size, s.lfs.sha256 if s.lfs else None, None if s.lfs else s.blob_id)
            for s in info.siblings or []
        }

        def index() -> dict[str, object]:
            return read_index(Path(library.hf_hub_download(name, INDEX_NAME, revision=info.sha, etag_timeout=SECONDS)))

        wanted = choose(told, index, name)
        exact = [re.sub(r"([*?\[])", r"[\1]", path) for path in wanted]
        found = library.snapshot_download(name, revision=revision, allow_patterns=exact, etag_timeout=SECONDS)
        return Path(str(found)), {path: told[path] for path in wanted}


def told_by_cache(directory: Path) -> Listing:
    """Return what the cache knows without the hub: a file's content is stored under its hash."""
    listing: dict[str, Told] = {}
    for path in sorted(directory.iterdir()):
        stored = path.resolve().name
        sha256 = stored if re.fullmatch(r"[0-9a-f]{64}", stored) else None
        sha1 = stored if re.fullmatch(r"[0-9a-f]{40}", stored) else None
        if path.is_symlink() and (sha256 or sha1):
            listing[path.name] = Told(None, sha256, sha1)
    return listing
