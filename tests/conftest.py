"""Shared by all tests."""

import contextlib
import os
import zlib

# Tensors in tests are tiny: a second thread only makes them wait for each other, for ages on a busy machine. The
# variable is for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

# How long an example takes says more about the machine than about the example. A bare GPU machine lacks the library.
with contextlib.suppress(ModuleNotFoundError):
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")

# Triton decides at import whether its own functions are interpreted, and there is no telling who imports it first.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order(request: pytest.FixtureRequest) -> None:
    """Random numbers of a test depend on its name alone: what fails once fails again."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
