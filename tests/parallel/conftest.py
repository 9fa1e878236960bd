"""The ranks that tests of this folder run on."""

from collections.abc import Iterator

import pytest

from ling.testing.ranks import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Four processes, started at the first use and kept for all tests."""
    pool = RankPool()
    yield pool
    pool.close()
