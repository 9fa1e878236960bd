"""A directory, or a name on a hub, to a directory that holds the checkpoint."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Literal

from ling.checkpoint.hub import huggingface, modelscope
from ling.checkpoint.hub.names import check_name, may_be_name
from ling.checkpoint.hub.verify import check_snapshot
from ling.checkpoint.hub.wanted import missing_files
from ling.errors import CheckpointError, ConfigError
from ling.hub import Listing, is_offline

logger = logging.getLogger(__name__)

Hub = Literal["hf", "modelscope"]
_HUBS: dict[str, ModuleType] = {"hf": huggingface, "modelscope": modelscope}


def resolve_checkpoint(name: str | Path) -> Path:
    """Return the directory of a checkpoint: `name` itself if it is one here, else the hub's model of that name.

    A model in a hub's cache is taken as it is, without the network; one that is not there is downloaded from Hugging
    Face. What has not the form owner/name is a path, and whether it exists is for the caller to say.
    Raises CheckpointError within seconds if the model is not in the cache and cannot be downloaded.
    """
    if Path(name).exists() or not may_be_name(name):
        return Path(name)
    text = str(name)
    if (found := _whole_in_cache(text)) is not None:
        logger.info("%s: taken from the cache, %s", text, found)
        return found
    if is_offline():
        raise _not_here(text, "HF_HUB_OFFLINE is set")
    logger.info("%s is no directory here: downloading it from Hugging Face", text)
    return download(text)[0]


def download(name: str, *, hub: str = "hf", revision: str | None = None, offline: bool = False) -> tuple[Path, Listing]:
    """Bring what is needed of a model into the hub's cache; return its directory and what the hub says of the files.

    offline  only look: the listing is then what the cache knows
    Sizes are checked; `verify_snapshot` checks contents.
    """
    check_name(name)
    if hub not in _HUBS:
        raise ConfigError(f"--from {hub} is not known; use {', '.join(_HUBS)}")
    library = _HUBS[hub]
    if offline or is_offline():
        found = library.cached(name, revision)
        why = "--offline was given" if offline else "HF_HUB_OFFLINE is set"
        if found is None:
            raise _not_here(name, why)
        if lost := missing_files(found):
            raise CheckpointError(
                f"{found} is incomplete, it lacks {lost[0]}, and {why}: download the rest with a network"
            )
        return found, huggingface.told_by_cache(found) if library is huggingface else {}
    found, listing = library.fetch(name, revision)
    check_snapshot(found, listing)
    return found, listing


def _whole_in_cache(name: str) -> Path | None:
    for library in (huggingface, modelscope):
        if library is modelscope and not modelscope.is_installed():
            continue
        if (found := library.cached(name)) is not None and not missing_files(found):
            return Path(found)
    return None


def _not_here(name: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is neither a directory here nor in the hub's cache, and {why}: run ling download {name} "
        "where there is a network, or give a directory"
    )
