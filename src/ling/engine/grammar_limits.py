"""How large a grammar a request may bring. What passes compiles in well under a second."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ling.errors import RequestError

MOST_SCHEMA_BYTES = 64 * 1024
MOST_SCHEMA_DEPTH = 64
"""Levels of braces and brackets; an object in an object takes two."""
MOST_ENUM_VALUES = 1024
MOST_AT_LEAST = 10_000
"""For `minItems` and its like: so much an answer would be forced to have."""
MOST_AT_MOST = 65_536
"""For `maxItems` and its like: counting further exceeds llguidance's states."""
MOST_REGEX_CHARACTERS = 4096
MOST_REPEATS = 10_000
MOST_LARK_BYTES = 256 * 1024
MOST_CHOICES = 1024
MOST_CHOICES_BYTES = 64 * 1024

_AT_LEAST = ("minItems", "minLength", "minProperties", "minContains")
_AT_MOST = ("maxItems", "maxLength", "maxProperties", "maxContains")
_DATA = ("const", "default", "example", "examples")
"""Keywords whose values are no schemas."""
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords whose values hold schemas under names of the person's own."""
# What follows reads what strangers send, under Python's lock: no part of it may try a character twice, so every
# repetition is possessive (`*+`), and what is left open is taken to its end.
_REPEAT = re.compile(
    r"\\[xuUpP]\{[^{}]*+\}|\\."
    r"|\{\s*+(\d++)\s*+(?:,\s*+(\d*+)\s*+)?+\}"
    r"|~\s*+(\d++)(?:\s*+\.\.\s*+(\d++))?+"
)
"""`{3}`, `{3,}`, `{3,5}`, and Lark's `~3` and `~3..5`; without groups, what is escaped: `\\x{3}`."""
_ATTRIBUTE = re.compile(r"^[ \t]*+[?!]?+[\w-]++\s*+\[[^\]\n]*\b(stop|max_tokens|temperature)\s*+=", re.MULTILINE)
"""What would change the text or the sampling behind the engine's back."""
_LEXEME = re.compile(r'(?P<string>"(?:\\.|[^"\\\n])*+"?)|(?P<regex>/(?:\\.|[^/\\])++/?)|(?P<comment>(?:#|//)[^\n]*+)')
"""Of Lark, what may hold anything; a quote in a regex begins no string."""


def to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def checked_schema(schema: Mapping[str, Any] | bool | str, name: str) -> dict[str, Any]:
    """Read a schema, given as such or as its text. Raises RequestError, which calls it `name`, if it is bad or huge."""
    if isinstance(schema, str):
        _check_bytes(schema, MOST_SCHEMA_BYTES, name)
    try:
        value = json.loads(schema, parse_constant=_refuse_constant) if isinstance(schema, str) else schema
        text = to_json(dict(value) if isinstance(value, Mapping) else value)
    except RecursionError:
        raise RequestError(f"{name} is nested deeper than {MOST_SCHEMA_DEPTH} levels") from None
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} is not JSON: {error}") from None
    _check_bytes(text, MOST_SCHEMA_BYTES, name)
    read = json.loads(text, parse_int=lambda digits: _integer(digits, name))
    if read is True:
        return {}
    if not isinstance(read, dict):
        raise RequestError(f"{name} must be an object or true, got {text[:40]}")
    if _depth(read) > MOST_SCHEMA_DEPTH:
        raise RequestError(f"{name} is nested deeper than {MOST_SCHEMA_DEPTH} levels")
    for part in _schemas(read):
        _check_keywords(part, name)
    return read


def check_regex(regex: str, name: str) -> None:
    if not 0 < len(regex) <= MOST_REGEX_CHARACTERS:
        raise RequestError(f"{name} must have 1 to {MOST_REGEX_CHARACTERS} characters, got {len(regex)}")
    _check_bytes(regex, 4 * MOST_REGEX_CHARACTERS, name)
    _check_repeats(regex, name)


def check_lark(lark: str) -> None:
    _check_bytes(lark, MOST_LARK_BYTES, "the grammar")
    rules = _LEXEME.sub(lambda found: found["regex"] or ('""' if found["string"] else ""), lark)
    _check_repeats(rules, "the grammar")
    if found := _ATTRIBUTE.search(rules):
        raise RequestError(f"the grammar gives a rule the attribute {found[1]}, which is not supported here")


def checked_choices(choices: Sequence[str]) -> list[str]:
    if isinstance(choices, str) or not all(isinstance(choice, str) and choice for choice in choices):
        raise RequestError("choice must be a list of texts, none of them empty")
    if not 0 < len(choices) <= MOST_CHOICES:
        raise RequestError(f"choice must have 1 to {MOST_CHOICES} texts, got {len(choices)}")
    _check_bytes("".join(choices), MOST_CHOICES_BYTES, "choice")
    return list(choices)


def _check_keywords(part: dict[str, Any], name: str) -> None:
    """Check the keywords of one schema, not those of the schemas inside it."""
    if "x-guidance" in part:
        raise RequestError(
            f"{name} has x-guidance, which is not accepted: how JSON is spelt is not the request's choice"
        )
    for key in ("$ref", "$dynamicRef"):
        if isinstance(target := part.get(key), str) and not target.startswith("#"):
            raise RequestError(
                f"{name} has {key} {target[:80]!r}; only references within the schema (#...) are followed"
            )
    if isinstance(values := part.get("enum"), list) and len(values) > MOST_ENUM_VALUES:
        raise RequestError(f"{name} has an enum of {len(values)} values; at most {MOST_ENUM_VALUES} are taken")
    for keys, most in ((_AT_LEAST, MOST_AT_LEAST), (_AT_MOST, MOST_AT_MOST)):
        for key in keys:
            if isinstance(count := part.get(key), int | float) and not 0 <= count <= most:
                raise RequestError(f"{name} has {key} {count}; it must lie between 0 and {most}, or be left out")
    patterns = [part.get("pattern"), *(part["patternProperties"] if _is_dict(part.get("patternProperties")) else ())]
    for pattern in patterns:
        if isinstance(pattern, str) and pattern:
            check_regex(pattern, f"a pattern of {name}")


def _schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give `schema` and every schema inside it."""
    yield schema
    for key, value in schema.items():
        if key in _DATA or key == "enum":
            continue
        inner = list(value.values()) if key in _BY_NAME and _is_dict(value) else value
        for part in inner if isinstance(inner, list) else [inner]:
            if _is_dict(part):
                yield from _schemas(part)


def _integer(digits: str, name: str) -> int:
    if not -(2**63) <= (value := int(digits)) < 2**64:
        raise RequestError(f"{name} has the integer {digits[:24]}, which llguidance would round: it exceeds 64 bits")
    return value


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _depth(value: object) -> int:
    """Count levels without recursion, which a deep value would exhaust."""
    depth, level = 0, [value]
    while level := [inner for outer in level if isinstance(outer, dict | list) for inner in _values(outer)]:
        depth += 1
    return depth


def _values(container: dict[str, Any] | list[Any]) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else container


def _check_repeats(text: str, name: str) -> None:
    for found in _REPEAT.finditer(text):
        for digits in filter(None, found.groups()):
            if len(digits) > len(str(MOST_REPEATS)) or int(digits) > MOST_REPEATS:
                raise RequestError(f"{name} repeats something {digits[:12]} times; at most {MOST_REPEATS} are taken")


def _check_bytes(text: str, most: int, name: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise RequestError(f"{name} is not Unicode: it holds half a surrogate pair") from None
    if size > most:
        raise RequestError(f"{name} has {size} bytes; at most {most} are taken")


def _refuse_constant(spelling: str) -> None:
    raise ValueError(f"{spelling} is no number of JSON")
