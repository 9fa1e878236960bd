"""Kernels against their references in Triton's interpreter."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from ling.testing import triton_interpreter

if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
    # No wheel for this platform; or kernels are to be compiled, and tests/gpu runs these tests on the device.
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with triton_interpreter.interpreted():
        yield
