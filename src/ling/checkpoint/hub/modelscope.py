"""ModelScope, through its own client library (the extra `modelscope`) and its cache."""

import importlib
import importlib.util
import re
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

from ling.checkpoint.hub.wanted import choose, read_index
from ling.checkpoint.source import INDEX_NAME
from ling.errors import CheckpointError
from ling.hub import Listing, Told

TITLE = "ModelScope"
_SECONDS = 10.0


def is_installed() -> bool:
    """Whether the client library is there."""
    return importlib.util.find_spec("modelscope") is not None


def cached(name: str, revision: str | None = None) -> Path | None:
    """Return the directory of a model in the cache, whole or not; None if nothing of it is there."""
    try:
        return Path(str(_library().snapshot_download(name, revision=revision, local_files_only=True)))
    except CheckpointError:
        raise
    except Exception:  # each version of the library has a class of its own for "not there"
        return None


def fetch(name: str, revision: str | None = None) -> tuple[Path, Listing]:
    """Download what is needed of a model; return its directory and what the hub says of each file."""
    library = _library()
    basis = importlib.import_module("modelscope_hub")  # what modelscope itself stands on
    api, endpoint = basis.HubApi(), str(basis.HubConfig().endpoint)
    _probe(name, endpoint)
    try:
        told = dict(_entries(api.list_repo_files(name, "model", revision=revision)))

        def index() -> dict[str, Any]:
            found = library.snapshot_download(name, revision=revision, allow_patterns=[INDEX_NAME])
            return read_index(Path(str(found)) / INDEX_NAME)

        wanted = choose(told, index, name)
        exact = [re.sub(r"([*?\[])", r"[\1]", path) for path in wanted]
        found = library.snapshot_download(name, revision=revision, allow_patterns=exact)
        return Path(str(found)), {path: told[path] for path in wanted}
    except CheckpointError:
        raise
    except Exception as error:  # the library raises classes of its own, requests' and plain ones
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"cannot download {name} from {endpoint} ({reason}); the same command goes on") from None


def _library() -> ModuleType:
    try:
        return importlib.import_module("modelscope")
    except ImportError:
        raise CheckpointError("--from modelscope needs its client: pip install 'ling[modelscope]'") from None


def _probe(name: str, endpoint: str) -> None:
    """Find out within seconds that there is no network; the library would try again for half a minute."""
    try:
        urllib.request.urlopen(endpoint, timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CheckpointError(f"cannot download {name}: {endpoint} cannot be reached ({reason})") from None


def _entries(files: Any) -> list[tuple[str, Told]]:
    return [
        (str(file.path), Told(file.size, getattr(file, "sha256", None) or None))
        for file in files
        if file.type != "tree"
    ]
