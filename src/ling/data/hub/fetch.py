"""A data set's name to files in the hub's cache.

The commit is looked up first; whatever follows is about that commit, so that no two files are of different states. The
client keeps the listing of a commit beside its files: with it, the same part is found again without a network.
"""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from ling.data.hub.card import read_card
from ling.data.hub.name import DatasetName, parse
from ling.data.hub.parts import CONVERTED, Part, at_path, choose, formats, has_readable
from ling.data.records import SUFFIXES, kind_of
from ling.errors import ConfigError, DataError
from ling.hub import SECONDS, Kind, Listing, Told, check_sizes, client, is_offline, one_line

logger = logging.getLogger(__name__)

DATASETS = Kind(
    noun="data set",
    error=DataError,
    unknown="no data set, or none that you may see,",
    command="the same command",
    elsewhere="run the same command where there is a network, or with --offline what is in the cache",
)
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Fetched:
    """Files that lie here, and the name of each, which has the commit in it."""

    files: list[Path]
    names: list[str]


@dataclass(frozen=True, slots=True)
class _State:
    """A data set at a commit: what it holds, and where the cache has it."""

    name: DatasetName
    revision: str | None
    commit: str
    listing: Listing
    directory: Path


def fetch_texts(text: str, *, subset: str | None = None, split: str | None = None, offline: bool = False) -> Fetched:
    """Bring the files of a data set, or of a part of it, into the hub's cache.

    text           hf://OWNER/NAME[@REVISION][/PATH]; a path stands instead of subset and split
    subset, split  None: the default one, `train`
    offline        only look into the cache
    Raises DataError or ConfigError in one line.
    """
    name = parse(text)
    if name.path and (subset or split):
        raise ConfigError(f"{text} names files by a path; --subset and --split choose where there is none")
    offline = offline or is_offline()
    state = _open(name, name.revision, offline)
    if name.path:
        part = at_path(name.path, state.listing, text)
    else:
        state, part = _choose(state, subset, split, offline)
    listing = {path: state.listing[path] for path in part.files}
    _announce(state, part, listing)
    _check_readers(name, part)
    if not offline:
        _download(state, part)
    elif lost := [path for path in part.files if not (state.directory / path).is_file()]:
        raise DataError(
            f"{len(lost)} of {len(part.files)} files of {name.repository} are not in the hub's cache, such as "
            f"{lost[0]}: run the same command where there is a network"
        )
    check_sizes(state.directory, listing, DATASETS)
    return Fetched(
        [state.directory / path for path in part.files], [name.file(state.commit, path) for path in part.files]
    )


def _choose(state: _State, subset: str | None, split: str | None, offline: bool) -> tuple[_State, Part]:
    """Choose among the files of a data set; if they are of no use here, among those that the hub made of them."""
    where, converted = state.name.repository, state.revision == CONVERTED
    card = {} if converted else read_card(_text(state.directory / _CARD), f"hf://{where}")
    if has_readable(state.listing):
        part = choose(state.listing, card, converted=converted, subset=subset, split=split, where=where)
        if part.can_be_read:
            return state, part
    what = f"{where} holds {formats(state.listing)}, of which nothing is read here"
    if state.revision is not None:
        raise DataError(f"{what}; {', '.join(SUFFIXES)} and .txt are")
    try:
        state = _open(state.name, CONVERTED, offline)
    except DataError as error:
        raise DataError(f"{what}, and there is no conversion to parquet to be had: {error}") from None
    logger.info("%s; taking what the hub converted to parquet, %s", what, CONVERTED)
    return state, choose(state.listing, card, converted=True, subset=subset, split=split, where=f"{where}@{CONVERTED}")


def _open(name: DatasetName, revision: str | None, offline: bool) -> _State:
    """Find out what a data set holds, and bring its card here."""
    library, repository = client(), name.repository
    if offline:
        return _open_cached(name, revision)
    with one_line(repository, DATASETS):
        api = library.HfApi()
        commit = str(api.dataset_info(repository, revision=revision, timeout=SECONDS).sha)
        entries = api.list_repo_tree(repository, repo_type="dataset", revision=commit, recursive=True)
        listing = {entry.path: Told(entry.size) for entry in entries if hasattr(entry, "size")}
        with _no_bars():
            found = library.snapshot_download(  # the client keeps listing and revision with it
                repository, repo_type="dataset", revision=revision, allow_patterns=[_CARD], etag_timeout=SECONDS
            )
    if Path(found).name != commit:
        raise DataError(f"{repository} was changed at this moment; run the same command again")
    return _State(name, revision, commit, listing, Path(found))


def _open_cached(name: DatasetName, revision: str | None) -> _State:
    library, repository = client(), name.repository
    if not hasattr(library, "get_cached_repo_tree"):
        raise ConfigError("data sets from the cache alone need a newer client: pip install --upgrade huggingface_hub")
    from huggingface_hub import errors

    try:
        entries = library.get_cached_repo_tree(repository, repo_type="dataset", revision=revision)
        found = library.snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=[_CARD], local_files_only=True
        )
    except (errors.CachedRepoTreeNotFoundError, errors.LocalEntryNotFoundError):
        at = f"@{revision}" if revision else ""
        raise DataError(
            f"{repository}{at} is not in the hub's cache, and this is offline: "
            "run the same command where there is a network"
        ) from None
    return _State(name, revision, Path(found).name, {entry.path: Told(entry.size) for entry in entries}, Path(found))


def _announce(state: _State, part: Part, listing: Listing) -> None:
    size = decimal(sum(told.size or 0 for told in listing.values()))
    logger.info(
        "%s at commit %s: %s, %d files, %s",
        state.name.repository, state.commit[:12], part.title, len(part.files), size,
    )  # fmt: skip
    if part.left_out:
        logger.warning(
            "%d files of other formats are left out, such as %s; name them as hf://%s/PATH",
            len(part.left_out), part.left_out[0], state.name.repository,
        )  # fmt: skip


def _check_readers(name: DatasetName, part: Part) -> None:
    """Say that a library is missing before anything large is downloaded."""
    if any(kind_of(path) == ".parquet" for path in part.files):
        from ling.data.parquet import library

        library(name.repository)


def _download(state: _State, part: Part) -> None:
    """Bring files into the cache, one after the other: the client itself takes a large one in pieces at a time."""
    for path in part.files:
        with one_line(state.name.repository, DATASETS):
            client().hf_hub_download(
                state.name.repository, path, repo_type="dataset", revision=state.commit, etag_timeout=SECONDS
            )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the client from drawing progress: of a card there is none worth a line."""
    utils = importlib.import_module("huggingface_hub.utils")
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
