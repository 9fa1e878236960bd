"""Hugging Face's client library, `huggingface_hub`: whatever goes wrong in it is one line.

Its cache is the one place where files lie. A file that arrived is never asked for again; a connection that breaks goes
on inside the file. HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT mean what they mean there.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType

from ling.errors import ConfigError, LingError

SECONDS = 10.0
"""To wait for an answer before the network counts as down."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a repository holds, and how its errors read.

    noun       what it is
    error      raised
    unknown    what a name is not, if the hub does not know it
    command    to run again after a file was damaged
    elsewhere  what to do without a network; {name} is filled in
    """

    noun: str
    error: type[LingError]
    unknown: str
    command: str
    elsewhere: str


def client() -> ModuleType:
    """Return the client library."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigError("models and data sets on Hugging Face need its client: pip install huggingface_hub") from None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    client()
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def one_line(name: str, kind: Kind) -> Iterator[None]:
    """Turn what the library raises into one line of the kind's error each."""
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
        raise kind.error(f"{name} is gated: accept its terms on {where}, then log in with hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise kind.error(f"{name} is {kind.unknown} on {where}") from None
    except errors.RevisionNotFoundError:
        raise kind.error(f"{name} has no such revision on {where}") from None
    except errors.HFValidationError as error:
        raise kind.error(f"{name} is not a {kind.noun}'s name: {' '.join(str(error).split())[:120]}") from None
    except unreachable as error:
        raise kind.error(
            f"cannot download {name} from {where} ({_reason(error)}): {kind.elsewhere.format(name=name)}; "
            "what has arrived is kept, and the download goes on from there"
        ) from None
    except OSError as error:
        raise kind.error(f"cannot store {name}: {error.strerror or ' '.join(str(error).split())[:160]}") from None


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
