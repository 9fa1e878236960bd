"""Shared by the tests of the C kernels."""

from collections.abc import Iterator

import pytest
import torch
from tests.ops.cpu.weights import levels

from ling.ops.cpu.library import opened


@pytest.fixture(params=["avx512", "avx2", "plain"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set in turn; nothing learns meanwhile."""
    if request.param not in levels():
        pytest.skip(f"this processor has no {request.param}")
    with opened().at_level(request.param), torch.no_grad():
        yield request.param
