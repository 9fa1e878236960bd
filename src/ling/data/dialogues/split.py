"""The one rule that parts training prompts from held-out prompts.

A prompt is held out when the hash of its key falls in the first `percent` of the hash range. The rule needs
no list, never changes between runs, machines and Python versions, and does not know which tasks exist.
"""

import hashlib
import re

from ling.errors import DataError

_NO_MEANING = re.compile(r"[\s.,!?;:'\"，。！？、；：]+")


def canonical(text: str) -> str:
    """Drop what does not make a prompt a different prompt: case, spaces and sentence punctuation.

    Signs such as + - = stay. So a held-out prompt differs from each training prompt in its words, not only
    in a comma.
    """
    return _NO_MEANING.sub("", text.casefold())


def heldout(key: str, percent: float = 10.0) -> bool:
    """Tell whether the prompts with this key are kept for evaluation; training must then never see them.

    key      `Dialogue.key`
    percent  0 to 100, the share of keys held out; a smaller share is a subset of a larger one
    return   the same on every machine and Python version: sha256, never `hash()`
    """
    if not 0 <= percent <= 100:
        raise DataError(f"the held-out share must be 0 to 100 percent, got {percent}")
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < percent / 100 * 2**64
