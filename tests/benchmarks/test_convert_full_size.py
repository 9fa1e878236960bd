"""The full-size conversion, at the size of a toy."""

from pathlib import Path

import pytest
from benchmarks.convert_full_size import measure


@pytest.mark.slow  # four processes that import torch
def test_a_toy_goes_to_fp8_and_back(tmp_path: Path) -> None:
    numbers = measure(tmp_path, "tiny", 2)
    assert numbers["different"] == 0
    assert numbers["tensors"] > 100
    assert numbers["to_fp8"]["disk_gb"] > numbers["random"]["disk_gb"]
