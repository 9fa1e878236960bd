"""What a hub's name looks like, and the names that are published."""

import difflib
from pathlib import Path

from ling.errors import ConfigError
from ling.hub import NAME

OWNER = "inclusionAI"

PUBLISHED: dict[str, str] = {
    f"{OWNER}/Ling-mini-2.0": "chat, 32K (128K with YaRN)",
    f"{OWNER}/Ling-mini-base-2.0": "base, 32K (128K with YaRN)",
    **{f"{OWNER}/Ling-mini-base-2.0-{n}T": f"base after {n}T tokens, 4K" for n in (5, 10, 15, 20)},
    f"{OWNER}/Ling-flash-2.0": "chat, 32K (128K with YaRN)",
    f"{OWNER}/Ling-flash-base-2.0": "base, 32K",
    f"{OWNER}/Ling-1T": "chat, 32K (128K with YaRN)",
}
"""The checkpoints of the family. Other names are taken as they are."""


def may_be_name(name: str | Path) -> bool:
    """Whether `name` has a hub's form, owner/name, and its first part is no directory here."""
    text = str(name)
    return NAME.fullmatch(text) is not None and not Path(text).parent.is_dir()


def check_name(name: str) -> None:
    """Raise ConfigError, with a suggestion, unless `name` has the form owner/name."""
    if NAME.fullmatch(name):
        return
    short = {published.partition("/")[2]: published for published in PUBLISHED}
    near = difflib.get_close_matches(name, [*short, *PUBLISHED], 1)
    hint = f"; did you mean {short.get(near[0], near[0])}?" if near else f", such as {next(iter(PUBLISHED))}"
    raise ConfigError(f"{name!r} is not a model's name: that is owner/name{hint}")
