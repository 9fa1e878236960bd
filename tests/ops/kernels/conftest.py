"""Kernels against their references in Triton's interpreter, which must be prepared before anything imports Triton."""

import importlib.util
from collections.abc import Iterator

import pytest

from ling.testing import triton_interpreter

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]  # no wheel for this platform
else:
    triton_interpreter.prepare()


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with triton_interpreter.interpreted():
        yield
