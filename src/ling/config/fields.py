"""One check for every config dataclass: a value has its field's declared type, and numbers are finite.

Python does not check annotations, and NaN passes every comparison written as "refuse if x <= 0". So each
`__post_init__` calls `check_fields` first, and its own comparisons can rely on ordinary numbers.
"""

import functools
import math
import typing
from types import NoneType, UnionType
from typing import Any, Literal

from ling.errors import ConfigError

_LARGEST_INTEGER = 2**63 - 1
_MANY_CHARACTERS = 80
_WORDS = {int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}


@functools.cache
def declared_types(config_class: type) -> dict[str, Any]:
    """Return `{field: type}` of a config dataclass."""
    return typing.get_type_hints(config_class)


def check_fields(config: Any, section: str) -> None:
    """Raise ConfigError unless each field of a config dataclass holds what `check_value` takes."""
    for name, hint in declared_types(config.__class__).items():
        check_value(f"{section}.{name}", getattr(config, name), hint)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raise ConfigError unless `value` is a `hint`: finite if a number, within 64 bits if an integer.

    Booleans are not numbers here; an integer serves as a float.
    """
    if not _is_a(value, hint):
        raise ConfigError(f"{name} must be {_words(hint)}, got {shown(value)}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{name} must be a finite number, got {number}")
        if isinstance(number, int) and abs(number) > _LARGEST_INTEGER:
            raise ConfigError(f"{name} must lie within 64 bits (2**63 - 1 at most), got {shown(number)}")


def shown(value: object) -> str:
    """Return `value` as a message quotes it: on one line and not long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a very deep list
        return f"a huge {type(value).__name__}"
    return text if len(text) <= _MANY_CHARACTERS else f"{text[:_MANY_CHARACTERS]}..."


def _is_a(value: object, hint: Any) -> bool:
    members = typing.get_args(hint)
    if isinstance(hint, UnionType):
        return any(_is_a(value, member) for member in members)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in members
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, members[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _words(hint: Any) -> str:
    members = typing.get_args(hint)
    if isinstance(hint, UnionType):
        return " or ".join(_words(member) for member in members)
    if typing.get_origin(hint) is Literal:
        return " or ".join(members)
    if typing.get_origin(hint) is tuple:
        return f"a list of {'integers' if members[0] is int else 'words'}"
    return _WORDS.get(hint, hint.__name__)
