"""Hugging Face, through `huggingface_hub` and its cache.

A file that arrived is never asked for again; a connection that breaks goes on inside the file. HF_HUB_OFFLINE and
HF_ENDPOINT mean what they mean there.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from ling.checkpoint.hub.wanted import Listing, Told, choose, read_index
from ling.checkpoint.source import INDEX_NAME
from ling.errors import CheckpointError

TITLE = "Hugging Face"
_SECONDS = 10.0
"""To wait for an answer before the network counts as down."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    _library()
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached(name: str, revision: str | None = None) -> Path | None:
    """Return the directory of a model in the cache, whole or not; None if nothing of it is there."""
    snapshot_download = _library().snapshot_download
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
    library = _library()
    with _one_line(name):
        info = library.HfApi().model_info(name, revision=revision, files_metadata=True, timeout=_SECONDS)
        told = {
            s.rfilename: Told(s.size, s.lfs.sha256 if s.lfs else None, None if s.lfs else s.blob_id)
            for s in info.siblings or []
        }

        def index() -> dict[str, object]:
            return read_index(Path(library.hf_hub_download(name, INDEX_NAME, revision=info.sha, etag_timeout=_SECONDS)))

        wanted = choose(told, index, name)
        exact = [re.sub(r"([*?\[])", r"[\1]", path) for path in wanted]
        found = library.snapshot_download(name, revision=revision, allow_patterns=exact, etag_timeout=_SECONDS)
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


def _library() -> ModuleType:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError("models on Hugging Face need its client: pip install huggingface_hub") from None


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what the library's way to the network raises: httpx from 1.0 on, requests before."""
    found: list[type[Exception]] = []
    for module, name in (("httpx", "HTTPError"), ("requests.exceptions", "RequestException")):
        with suppress(ImportError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


def _reason(error: BaseException) -> str:
    """Return what the first of a chain of errors says: the network's own words, not those of each layer above."""
    said = type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        said = " ".join(str(cause).split())[:160] or said
        cause = cause.__cause__ or cause.__context__
    return said


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what the library raises into one line each."""
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT
    unreachable: tuple[type[Exception], ...] = (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        *_network_errors(),
    )
    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(f"{name} is gated: accept its terms on {where}, then log in with hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{name} is neither a directory here nor a public model on {where}") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name} has no such revision on {where}") from None
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name} is not a model's name: {' '.join(str(error).split())[:120]}") from None
    except unreachable as error:
        raise CheckpointError(
            f"cannot download {name} from {where} ({_reason(error)}): run ling download {name} where there is a "
            "network, or give a directory; what has arrived is kept, and the download goes on from there"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot store {name}: {error.strerror or ' '.join(str(error).split())[:160]}") from None
