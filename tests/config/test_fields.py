"""Every field of every section refuses what is not of its type, and every number that is not finite."""

import math
from typing import Any

import pytest

from ling.config import ModelConfig, RopeScaling
from ling.config.fields import check_value, declared_types, shown
from ling.config.training import DataConfig, OptimConfig, TrainConfig
from ling.errors import ConfigError

NEEDED: dict[type, dict[str, Any]] = {RopeScaling: {"type": "linear", "factor": 2.0}}
FIELDS = [
    (section, name, hint)
    for section in (ModelConfig, RopeScaling, DataConfig, OptimConfig, TrainConfig)
    for name, hint in declared_types(section).items()
]
FLOATS = [(section, name) for section, name, hint in FIELDS if hint in (float, float | None)]
NUMBERS = [(section, name) for section, name, hint in FIELDS if hint in (int, int | None, float, float | None)]


def build(section: type, name: str, value: object) -> None:
    section(**{**NEEDED.get(section, {}), name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("section", "name"), FLOATS, ids=[name for _, name in FLOATS])
def test_a_number_that_is_not_finite_is_refused(section: type, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"\.{name} must be a finite number, got {value}"):
        build(section, name, value)


@pytest.mark.parametrize("value", [True, "7", [7], 10**400, 10**5000], ids=["true", "text", "list", "big", "huge"])
@pytest.mark.parametrize(("section", "name"), NUMBERS, ids=[name for _, name in NUMBERS])
def test_what_is_no_number_or_beyond_64_bits_is_refused(section: type, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"\.{name} must") as caught:
        build(section, name, value)
    assert len(str(caught.value)) < 200


def test_messages_name_the_type_in_words() -> None:
    for value, hint, message in (
        ("x", int, "k must be an integer, got 'x'"),
        (1, bool, "k must be true or false, got 1"),
        ((1, True), int | tuple[int, ...] | None, "k must be an integer or a list of integers or null, got (1, True)"),
        ("a", RopeScaling | None, "k must be RopeScaling or null, got 'a'"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_value("k", value, hint)
        assert str(caught.value) == message


def test_quoted_values_stay_short() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown("a\nb") == "'a\\nb'"
    assert shown(10**5000) == "a huge int"
    assert shown(deep) == "a huge list"
    assert len(shown("x" * 10_000)) < 100
