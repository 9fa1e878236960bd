"""Every kernel, as it is launched at Ling-mini's sizes, compiled for Hopper on a machine without a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.ops.kernels.launches import OTHERS, USUAL

PRODUCTS = ("fp8_matmul", "weight_grad", "columns")
SHARED_BYTES = 227 * 1024
"""What a block of threads may have on Hopper."""


def compile_cases(names: list[str], cache: Path) -> list[dict[str, Any]]:
    """Compile in a process of its own, since this one interprets, and without what was compiled before."""
    root = Path(__file__).parents[3]
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.kernels.compile_ahead", *names],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    for found in compiled:
        assert 0 <= found["shared_bytes"] <= SHARED_BYTES, found
        if found["kernel"] in PRODUCTS:
            assert found["mma"] == "wgmma", found
    return compiled


def test_every_kernel_compiles_for_hopper_and_its_tensor_cores_within_its_shared_memory(tmp_path: Path) -> None:
    launched = {found["kernel"] for found in compile_cases([case.__name__ for case in USUAL], tmp_path)}
    for path in (Path(__file__).parents[3] / "src/ling/ops/triton/kernels").glob("*.py"):
        if path.name != "fp8.py":  # functions that kernels call
            kernels = set(re.findall(r"@triton.jit(?:\(.*\))?\ndef ([a-z]\w*)", path.read_text()))
            assert kernels <= launched, f"{path.name}: {sorted(kernels - launched)} is in no launch that is compiled"


@pytest.mark.slow
def test_kernels_compile_for_other_dtypes_and_shapes(tmp_path: Path) -> None:
    assert compile_cases([case.__name__ for case in OTHERS], tmp_path)
