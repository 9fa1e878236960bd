"""Keeps JSON from running on: numbers end, nesting ends.

Models get caught in repetitions, and a grammar lets them: any number of digits is a number, any number of brackets
begins an array. The bounds work on masks, not on schemas, because a schema leaves both open in places where it says
nothing (`{}`, a missing `items` or `additionalProperties`, parts of an `allOf`). A mask is only ever narrowed,
and never to nothing: where the schema leaves no choice, such as a minimum of thirty digits, the schema wins.

Whitespace is bounded by the grammar. Strings and the lengths of arrays and objects are content: `maxLength`,
`maxItems` and the request's `max_tokens` bound them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MOST_DIGITS = 19
"""Of a number before its exponent: what 64-bit integers have; a float64 needs 17."""
MOST_EXPONENT_DIGITS = 2
"""With them, every number is a finite float64."""
MOST_DEPTH = 32
"""Arrays and objects inside each other."""

_DIGITS = b"0123456789"
_NUMBER = _DIGITS + b".eE"


class Place(NamedTuple):
    """Where in its JSON a text has come."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False
    """The last byte was the backslash of an escape."""
    digits: int = 0
    """Of the number that the text ends in; an exponent counts as all digits but its own."""


class JsonBounds:
    """The bounds for one vocabulary. Immutable."""

    START = Place()

    def __init__(self, token_bytes: list[bytes]) -> None:
        leads = [len(data) - len(data.lstrip(_NUMBER)) for data in token_bytes]
        self._leads = torch.tensor(leads, dtype=torch.int32)
        """(tokenizer's V,) how many bytes at the beginning of each token would make a number longer."""
        openers = [(id, data) for id, data in enumerate(token_bytes) if b"[" in data or b"{" in data]
        self._rises = {
            (in_string, escaped): _rises(openers, len(token_bytes), Place(0, in_string, escaped))
            for in_string, escaped in ((False, False), (True, False), (True, True))
        }
        """(tokenizer's V,) how much deeper each token goes, begun outside a string, in one, or in an escape."""
        self._highest = max(int(rises.max()) for rises in self._rises.values())

    def after(self, place: Place, data: bytes) -> Place:
        """Follow the bytes of one token. Assumes that they are JSON, or plain text without quotes around it."""
        for byte in data:
            place = _next(place, byte)
        return place

    def narrow(self, place: Place, mask: Tensor) -> Tensor:
        """Take from `mask` (V,) bool the tokens that pass a bound, unless nothing would be left."""
        known = len(self._leads)
        if place.digits and not place.in_string:
            mask = _without(mask, self._leads > max(0, MOST_DIGITS - place.digits), known)
        if place.depth + self._highest > MOST_DEPTH:
            rises = self._rises[place.in_string, place.escaped]
            mask = _without(mask, rises > max(0, MOST_DEPTH - place.depth), known)
        return mask


def _without(mask: Tensor, forbidden: Tensor, known: int) -> Tensor:
    narrowed = mask.clone()
    narrowed[:known] &= ~forbidden
    return narrowed if narrowed.any() else mask


def _rises(openers: list[tuple[int, bytes]], num_tokens: int, begin: Place) -> Tensor:
    rises = torch.zeros(num_tokens, dtype=torch.int32)
    for id, data in openers:
        place, deepest = begin, 0
        for byte in data:
            place = _next(place, byte)
            deepest = max(deepest, place.depth)
        rises[id] = deepest
    return rises


def _next(place: Place, byte: int) -> Place:
    depth, in_string, escaped, digits = place
    if escaped:
        return Place(depth, True)
    if in_string:
        return Place(depth, byte != _QUOTE, byte == _BACKSLASH)
    if byte in _DIGITS:
        return Place(depth, digits=digits + 1)
    if digits and byte in b"eE":
        return Place(depth, digits=max(digits, MOST_DIGITS - MOST_EXPONENT_DIGITS))
    if digits and byte in b".+-":
        return place
    if byte == _QUOTE:
        return Place(depth, True)
    return Place(depth + (byte in b"[{") - (byte in b"]}"))


_QUOTE, _BACKSLASH = b'"\\'
