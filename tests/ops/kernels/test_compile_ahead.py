"""Every kernel, as it is launched at Ling-mini's sizes, compiled for Hopper on a machine without a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_BYTES = 227 * 1024
"""What a block of threads may have on Hopper."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Compile in a process of its own, since this one interprets, and without what was compiled before."""
    root = Path(__file__).parents[3]
    cache = tmp_path_factory.mktemp("triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.kernels.compile_ahead"],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_hopper_within_its_shared_memory(compiled: list[dict[str, Any]]) -> None:
    source = Path(__file__).parents[3] / "src/ling/ops/triton/kernels"
    for found in compiled:
        assert 0 <= found["shared_bytes"] <= SHARED_BYTES, found
    launched = {found["kernel"] for found in compiled}
    for path in source.glob("*.py"):
        if path.name != "fp8.py":  # functions that kernels call
            kernels = set(re.findall(r"@triton.jit(?:\(.*\))?\ndef ([a-z]\w*)", path.read_text()))
            assert kernels <= launched, f"{path.name}: {sorted(kernels - launched)} is in no launch that is compiled"


def test_products_use_the_tensor_cores_of_hopper(compiled: list[dict[str, Any]]) -> None:
    for found in compiled:
        if found["kernel"] in ("fp8_matmul", "weight_grad", "columns"):
            assert found["mma"] == "wgmma", found
