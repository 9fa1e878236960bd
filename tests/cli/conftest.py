"""Running `ling` inside the test process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ling.cli.app import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def ling(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command line; return its exit code, stdout and stderr."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ling", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run
