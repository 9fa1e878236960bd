"""The kernels under the address and undefined-behaviour sanitizers, driven by their own tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ling.ops.cpu import library as lib

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "src/ling/ops/cpu/kernels"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_kernels_are_clean_under_the_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    runtimes = [
        subprocess.check_output([compiler, f"-print-file-name={name}.so"], text=True).strip()
        for name in ("libasan", "libubsan")
    ]
    if not all(Path(runtime).exists() for runtime in runtimes):
        pytest.skip("gcc has no sanitizers")
    built = tmp_path / f"_kernels{lib.EXTENSION_SUFFIXES[0]}"
    flags = [
        "-std=gnu11",
        "-O1",
        "-g1",
        "-fno-var-tracking",
        "-fPIC",
        "-fopenmp",
        "-ffp-contract=off",
        "-shared",
        "-Wno-psabi",
    ]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    subprocess.run([compiler, *flags, *checks, *sorted(KERNELS.glob("*.c")), "-o", built], check=True)
    plugin = tmp_path / "sanitized.py"
    plugin.write_text(
        f"from ling.ops.cpu import library\nlibrary.__file__ = {str(tmp_path / 'library.py')!r}\n"
        f"assert library.library() is not None\nassert {str(built)!r} in open('/proc/self/maps').read()\n"
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "PYTHONMALLOC": "malloc",
    }
    tests = [f"tests/ops/cpu/test_{name}.py" for name in ("kernels", "order")] + ["tests/ops/test_packed.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "sanitized", "-p", "no:xdist", "--timeout", "1500", *tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
