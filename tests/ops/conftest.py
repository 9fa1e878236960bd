"""Shared by the tests of libraries for FP8 products."""

from collections.abc import Iterator

import pytest
from tests.ops import fp8_contracts as contracts

from ling.ops.deep_gemm import library


@pytest.fixture
def nothing_remembered() -> Iterator[None]:
    """Let DeepGEMM be looked for anew, by this test and by the next."""
    library.find.cache_clear()
    yield
    library.find.cache_clear()


@pytest.fixture
def doubles(nothing_remembered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    contracts.install(monkeypatch)
