"""Flags of `ling serve` that take several values, in the two ways of writing them."""

import pytest
from typer.testing import CliRunner

from ling.cli.app import app
from ling.cli.serve import command
from ling.cli.serve.several import repeated
from ling.errors import ConfigError, LingError


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("m --served-model-name a b", "m --served-model-name a --served-model-name b"),
        ("m --api-key a b --port 5", "m --api-key a --api-key b --port 5"),
        ("--served-model-name a b --model m", "--served-model-name a --served-model-name b --model m"),
        ("--api-key a b --model-path=m", "--api-key a --api-key b --model-path=m"),
        ("m --api-key a --api-key b", "m --api-key a --api-key b"),
        ("--api-key a b -- m", "--api-key a --api-key b -- m"),
        ("--port 5 m --api-key a b", "--port 5 m --api-key a --api-key b"),
        ("--trust-remote-code m --api-key a b", "--trust-remote-code m --api-key a --api-key b"),
        ("--api-key a m", "--api-key a m"),
        ("-tp 2 --api-key a m", "-tp 2 --api-key a m"),
        ("--api-key a --port 5 m", "--api-key a --port 5 m"),
        ("m --api-key", "m --api-key"),
        ("m --api-key -a b", "m --api-key -a --api-key b"),
        ("m --allowed-origins https://a https://b", "m --allowed-origins https://a --allowed-origins https://b"),
        ("", ""),
    ],
)  # fmt: skip
def test_values_behind_blanks_are_repeated_and_the_model_stays_the_model(line: str, meant: str) -> None:
    assert repeated(line.split()) == meant.split()


def test_values_of_which_one_may_be_the_model_are_refused() -> None:
    for line in ("--served-model-name a b m", "--served-model-name a b --api-key c m"):
        with pytest.raises(ConfigError, match=r"which of \w, m is the model\? Name it first"):
            repeated(line.split())


def test_the_command_takes_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(command, "_one_model", lambda options: seen.append(options) or (_ for _ in ()).throw(LingError))
    CliRunner().invoke(app, ["serve", "m", "--served-model-name", "a", "b", "--api-key", "c", "--api-key", "d"])
    assert (seen[0].model, seen[0].served_model_name, seen[0].api_key) == ("m", ["a", "b"], ["c", "d"])
