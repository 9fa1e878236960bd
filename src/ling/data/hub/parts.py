"""Which files of a repository a part of a data set comes to. Pure: paths in, paths out.

The card decides where it says something (card.py). Where it does not, names do, as the hub's own viewer reads them:
`data/SPLIT-00000-of-00009`, else a word such as `train`, `dev` or `test` in the name of a file or of a folder around
it, else all is one split. On the branch that the hub converts to parquet, folders are SUBSET/SPLIT.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from ling.data.hub.card import DEFAULT_SPLIT, Subset
from ling.data.records import SUFFIXES, TEXT_SUFFIXES, kind_of
from ling.errors import ConfigError, DataError
from ling.hub import Listing

CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps what it converted."""
_ONLY = "default"
"""What the only subset is called."""
_READABLE = (*SUFFIXES, *TEXT_SUFFIXES)
_BY_PATH_ALONE = (".md",)
_OTHERS = (".csv", ".tsv", ".arrow", ".zst", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".pkl", ".xml")
"""Data that nothing here reads."""
_NO_DATA = re.compile(
    r"(readme|licen[cs]e|notice|citation)\b.*|requirements\.txt|(dataset_infos?|dataset_dict|state|config|package)\.json",
    re.I,
)
_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_NUMBERED = re.compile(r"data/([\w.]+)-\d{5}-of-\d{5}\b.*")
_MOST_NAMES = 12


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a data set: what it is called, its files of one format, and those of other formats."""

    title: str
    files: list[str]
    left_out: list[str]

    @property
    def can_be_read(self) -> bool:
        """Whether there are files, of a format that is read here."""
        return bool(self.files) and kind_of(self.files[0]) in _READABLE


def is_data(path: str) -> bool:
    """Say whether a file is data by its name: not hidden, not about the repository, a format that holds data."""
    *folders, name = path.split("/")
    if any(part.startswith((".", "__")) for part in (*folders, name)) or _NO_DATA.fullmatch(name):
        return False
    return kind_of(name) in (*_READABLE, *_OTHERS) and kind_of(name) not in _BY_PATH_ALONE


def at_path(path: str, listing: Listing, where: str) -> Part:
    """Return the readable files that a path names, a folder holds or a pattern matches. Raises DataError if none."""
    found = [file for file in _match([path], listing) if kind_of(file) in _READABLE and (file == path or is_data(file))]
    if not found:
        there = _match([path], listing)
        what = f"holds {_formats(there)} there, which is not read" if there else _near(path, listing)
        raise DataError(
            f"{where} {what}; data files end in {', '.join(SUFFIXES)}, {TEXT_SUFFIXES[0]}, or these and .gz"
        )
    return Part(path, found, [])


def choose(
    listing: Listing, card: Mapping[str, Subset], *, converted: bool, subset: str | None, split: str | None, where: str
) -> Part:
    """Return the files of a subset's split; left out, the default subset, and `train`.

    converted  whether this is the branch that the hub converted: folders tell, and of the card the default alone
    Raises ConfigError, with those that there are, for a name that is none of them, or if there is none to prefer.
    """
    data = [path for path in listing if is_data(path)]
    preferred = [*(name for name, one in card.items() if one.is_default), _ONLY]
    if card and not converted:
        chosen = _pick("subset", list(card), subset, preferred, where)
        splits = _splits_of_card(card[chosen], data)
    else:
        by_subset = _by_folders(data) if converted else {_ONLY: _by_names(data)}
        chosen = _pick("subset", list(by_subset), subset, preferred, where)
        splits = by_subset[chosen]
    picked = _pick("split", list(splits), split, [DEFAULT_SPLIT], f"{where}, subset {chosen}")
    files = _match(splits[picked], listing)
    title = f"subset {chosen}, split {picked}"
    if not files:
        raise DataError(f"{where}: its card gives {', '.join(splits[picked])} to {title}, and no data file matches")
    largest = _largest_format(files, listing)
    of_it = [file for file in files if kind_of(file) == largest]
    return Part(title, of_it, [file for file in files if kind_of(file) != largest])


def has_readable(listing: Iterable[str]) -> bool:
    """Say whether any data file has a format that is read here."""
    return any(is_data(path) and kind_of(path) in _READABLE for path in listing)


def formats(listing: Iterable[str]) -> str:
    """Return how the data files of a repository end, for a sentence."""
    return _formats([path for path in listing if is_data(path)]) or "no data files"


def _splits_of_card(subset: Subset, data: list[str]) -> dict[str, list[str]]:
    base = f"{subset.folder}/" if subset.folder else ""
    if subset.patterns is None:
        return _by_names([path for path in data if path.startswith(base)])
    return {split: [base + pattern for pattern in patterns] for split, patterns in subset.patterns.items()}


def _by_names(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return paths by split; where some name one, those that do not are left out."""
    splits: dict[str, list[str]] = {}
    for path in paths:
        if split := _split_of(path):
            splits.setdefault(split, []).append(path)
    return splits or {DEFAULT_SPLIT: list(paths)}


def _split_of(path: str) -> str | None:
    if found := _NUMBERED.fullmatch(path):
        return found[1]
    for part in reversed(PurePosixPath(path).parts):
        words = re.split(r"[-._ 0-9]+", part.lower())
        if split := next((_WORDS[word] for word in words if word in _WORDS), None):
            return split
    return None


def _by_folders(paths: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    table: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        subset, _, rest = path.partition("/")
        split, _, name = rest.partition("/")
        if name:
            table.setdefault(subset, {}).setdefault(split, []).append(path)
    return table


def _pick(what: str, there: Sequence[str], asked: str | None, preferred: Sequence[str], where: str) -> str:
    if asked is not None:
        if asked in there:
            return asked
        raise ConfigError(f"{where} has no {what} {asked!r}; it has {_names(there)}")
    for name in (*preferred, *there[: len(there) == 1]):
        if name in there:
            return name
    raise ConfigError(f"{where} has the {what}s {_names(there)}; choose one with --{what}")


def _names(there: Sequence[str]) -> str:
    more = f" and {len(there) - _MOST_NAMES} more" if len(there) > _MOST_NAMES else ""
    return ", ".join(sorted(there)[:_MOST_NAMES]) + more if there else "none"


def _match(patterns: Iterable[str], listing: Listing) -> list[str]:
    """Return the paths that one of the patterns names, in their order; a folder names what is beneath it."""
    found: dict[str, None] = {}
    for pattern in patterns:
        plain = re.sub(r"^(\./|/)+", "", pattern).rstrip("/")
        if plain in listing:
            found[plain] = None
            continue
        parts = plain.split("/")
        inside = [path for path in listing if _matches(path.split("/"), parts)]
        inside = inside or [path for path in listing if _matches(path.split("/"), [*parts, "**"])]
        found.update(dict.fromkeys(path for path in inside if is_data(path)))
    return sorted(found)


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Compare folder by folder; `**` stands for any number of them."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[skip:], pattern[1:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _largest_format(files: Sequence[str], listing: Listing) -> str:
    """Return the format that most bytes are in: others are copies, or about the data."""
    sizes: dict[str, int] = {}
    for file in files:
        sizes[kind_of(file)] = sizes.get(kind_of(file), 0) + (listing[file].size or 0)
    return max(sizes, key=lambda kind: sizes[kind])


def _formats(files: Collection[str]) -> str:
    return ", ".join(sorted({kind_of(file) or PurePosixPath(file).name for file in files})[:_MOST_NAMES])


def _near(path: str, listing: Listing) -> str:
    """Say what lies where a path leads nowhere."""
    folder = path.split("/")
    while folder:
        folder = folder[:-1]
        base = "".join(f"{part}/" for part in folder)
        beside = {file[len(base) :].split("/")[0] for file in listing if file.startswith(base)}
        if beside:
            return f"has no {path}; {base or 'it'} holds {_names(sorted(beside))}"
    return f"has no {path}; it is empty"
