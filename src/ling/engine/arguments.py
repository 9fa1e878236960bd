"""Values as people pass them, made what the engine computes with: numpy's numbers are numbers, arrays are lists."""

import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from ling.errors import RequestError


def whole(name: str, value: Any) -> int:
    """Return an int; RequestError for what is none, truth values and floats among it."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise RequestError(f"{name} must be a whole number, got {value!r}")


def real(name: str, value: Any) -> float:
    """Return a float; an int stays one. RequestError for what is no number."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        raise RequestError(f"{name} must be a number, got {value!r}")
    return value if type(value) in (int, float) else float(value)


def token_ids(name: str, value: Any) -> list[int]:
    """Return a list of ints from any sequence of token ids: list, tuple, range, numpy array, tensor."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise RequestError(f"{name} must be a list of token ids, got {value!r}")
    return [token if type(token) is int else whole(f"a token id of {name}", token) for token in value]


def conversations(messages: Any, tools: Any) -> list[tuple[list[Any], list[Any]]]:
    """Return each conversation with the tools that it is shown.

    messages  of one conversation, or a list of them for each of several
    tools     for all of them; or, with several conversations, a list for each
    """
    given = _listed("messages", messages)
    if not given:
        return []
    several = [_listed("a conversation", own) for own in given] if not isinstance(given[0], Mapping) else None
    shown = _listed("tools", () if tools is None else tools)
    if not shown or isinstance(shown[0], Mapping):
        return [(own, shown) for own in ([given] if several is None else several)]
    if several is None:
        raise RequestError("a list of tools for each conversation needs several conversations; one takes its tools")
    if len(shown) != len(several):
        raise RequestError(f"{len(several)} conversations need as many lists of tools, got {len(shown)}")
    return [(own, _listed("tools", () if its is None else its)) for own, its in zip(several, shown)]


def _listed(name: str, value: Any) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise RequestError(f"{name} must be a list, got {value!r}")
    return list(value)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Return a text, or several, as a tuple; None is none."""
    given = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(given, Iterable) or isinstance(given, bytes) or not all(isinstance(t, str) for t in given):
        raise RequestError(f"{name} must be a text or a list of texts, got {value!r}")
    return tuple(given)


def biases(name: str, value: Any) -> dict[int, float]:
    """Return a number for each token id; None is none."""
    if value is not None and not isinstance(value, Mapping):
        raise RequestError(f"{name} must map token ids to numbers, got {value!r}")
    return {whole(f"a token id of {name}", token): real(name, bias) for token, bias in (value or {}).items()}
