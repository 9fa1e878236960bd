"""Checking a request: nothing converted, nothing extra, every mistake told by the name of its field."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ling.server.errors import ApiError
from ling.server.schema.refused import REFUSED

LONGEST_NAME = 512

Text = Annotated[str, Field(max_length=LONGEST_NAME)]
"""A short text, such as a name."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    """Takes what is declared, as it is declared: no number in quotes, no true for 1, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


Model = TypeVar("Model", bound=Strict)


def validate(model: type[Model], body: object) -> Model:
    """Check a decoded JSON body; a field that is null counts as left out. Raises ApiError for the first mistake."""
    if not isinstance(body, dict):
        raise ApiError(f"the body must be a JSON object, got {_JSON_NAMES[type(body)]}")
    known = {field.alias or name for name, field in model.model_fields.items()} | REFUSED.keys()
    stray = next((name for name in body if name not in known), None)  # the first is enough of thousands
    given = {name: value for name, value in body.items() if (value is not None and name in known) or name == stray}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        # What is not supported at all is said first: the rest may be its consequence.
        mistakes = error.errors(include_url=False, include_input=False)
        mistakes.sort(key=lambda mistake: mistake["type"] != "extra_forbidden")
        raise _explain(_meant(mistakes), model) from None


def refuse(message: str, *, field: str | None = None, **values: Any) -> NoReturn:
    """Fail a validator with `message`, in which {} stand for `values`.

    field  of the object that is checked: the one to change
    """
    raise PydanticCustomError("refused", message, {**values, "field": field})


def _meant(mistakes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the first mistake; of a field that takes several forms, that of the form which came nearest."""
    first = mistakes[0]
    if not any(isinstance(part, str) and _is_made_up(part) for part in first["loc"]):
        return first
    same = (mistake for mistake in mistakes if mistake["loc"][0] == first["loc"][0])
    return next((mistake for mistake in same if not mistake["type"].endswith(("_type", "literal_error"))), first)


def _explain(mistake: Mapping[str, Any], model: type[Strict]) -> ApiError:
    path = mistake["loc"]
    if mistake["type"] == "refused" and (field := mistake["ctx"]["field"]) is not None:
        path = (*path, field)
    param = spell(path)
    if mistake["type"] != "extra_forbidden":
        is_object = mistake["type"] in ("model_type", "dict_type")  # pydantic's message names our class
        message = "must be an object" if is_object else mistake["msg"][:1].lower() + mistake["msg"][1:]
        return ApiError(f"{param}: {message}" if param else message, param=param or None)
    name = str(path[-1])[:LONGEST_NAME]
    if len(path) == 1 and name in REFUSED:
        return ApiError(f"{param} is not supported: {REFUSED[name]}", param=param, code="unsupported_parameter")
    near = difflib.get_close_matches(name, model.model_fields, 1) if len(path) == 1 else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return ApiError(f"unknown parameter {param}{hint}", param=param, code="unknown_parameter")


def spell(path: Sequence[int | str]) -> str:
    """Spell a path as `messages[0].content`; what pydantic adds to name a member of a union is left out."""
    spelt = ""
    for part in path:
        if isinstance(part, int):
            spelt += f"[{part}]"
        elif not _is_made_up(part):
            spelt += f".{part}" if spelt else part
    return spelt[: 2 * LONGEST_NAME]


def _is_made_up(part: str) -> bool:
    return "[" in part or part in _UNION_MEMBERS


_UNION_MEMBERS = frozenset({"str", "constrained-str", "int", "float", "bool", "NamedTool", "[key]"})
_JSON_NAMES: dict[type, str] = {
    list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null",
}  # fmt: skip
