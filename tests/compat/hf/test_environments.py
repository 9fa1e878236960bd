"""This directory's quick tests under the newest transformers 5 and under 4.57, with accelerate beside them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from benchmarks.peers import ROOT, peer_python


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("environment", ["transformers_5", "transformers_4"])
def test_the_quick_tests_pass_there_and_none_is_skipped(environment: str) -> None:
    own = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    code = "import sys, pytest, transformers; print(transformers.__version__); sys.exit(pytest.main(sys.argv[1:]))"
    command = [peer_python(environment), "-c", code, Path(__file__).parent, "-m", "not slow and not gpu", "-vv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **own})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    version, *_, last = done.stdout.strip().splitlines()
    print(f"transformers {version}: {last}")
    passed = re.search(r"(\d+) passed", last)
    assert passed, last
    assert int(passed[1]) > 150, last
    assert "skipped" not in last, last
