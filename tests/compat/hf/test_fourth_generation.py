"""The tests beside this one, with transformers 4.57 in an environment of its own."""

import os
import subprocess
from pathlib import Path

import pytest
from benchmarks.peers import ROOT, peer_python


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_holds_with_transformers_4_57() -> None:
    code = "import transformers; print(transformers.__version__)"
    python = peer_python("transformers_4_ling")
    assert subprocess.check_output([python, "-c", code], text=True).startswith("4.57")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-m", "not slow", Path(__file__).parent]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout[-4000:]
