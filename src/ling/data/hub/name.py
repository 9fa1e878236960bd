"""What a data set is called: `hf://OWNER/NAME[@REVISION][/PATH]`.

The hub's own spelling `hf://datasets/OWNER/NAME...` means the same. A revision that has slashes is one of the hub's
(`refs/convert/parquet`, `refs/pr/3`), or has them written as %2F.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from ling.errors import ConfigError
from ling.hub import NAME

PREFIX = "hf://"
_FORM = re.compile(r"([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/+(.*))?")


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A data set, or a part of it.

    path  of a file or a folder, or a pattern of such; "": whatever subset and split say
    """

    repository: str
    revision: str | None = None
    path: str = ""

    def file(self, commit: str, path: str) -> str:
        """Return the name of one file, which means the same for ever."""
        return f"{PREFIX}{self.repository}@{quote(commit, safe='/')}/{path}"


def parse(text: str) -> DatasetName:
    """Read a name. Raises ConfigError if it has another form."""
    found = _FORM.fullmatch(text.removeprefix(PREFIX).removeprefix("datasets/"))
    if not text.startswith(PREFIX) or found is None or not NAME.fullmatch(found[1]):
        raise ConfigError(f"{text} is not a data set's name: that is {PREFIX}OWNER/NAME[@REVISION][/PATH]")
    revision = None if found[2] is None else unquote(found[2])
    return DatasetName(found[1], revision, (found[3] or "").strip("/"))
