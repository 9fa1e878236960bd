"""A body's bytes to what they say, once and for certain."""

import json
from typing import Any

from pydantic_core import from_json

from ling.server.errors import ApiError

_LONGEST_NAME = 100


def decode(body: bytes) -> Any:
    """Return decoded JSON. Nesting ends at 200 levels; NaN and half a surrogate pair are no JSON.

    Raises ApiError for what is none, and for a key that an object has twice: of two readers one takes the first and
    another the last.
    """
    try:
        decoded = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    # Only Python's own reader tells pairs; numbers stay text, so none is too long for it.
    json.loads(body, object_pairs_hook=_check_distinct, parse_int=str, parse_float=str)
    return decoded


def _check_distinct(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            told = name[:_LONGEST_NAME]
            raise ApiError(f"the body has the key {told} twice in one object", param=told, code="invalid_json")
        seen.add(name)
