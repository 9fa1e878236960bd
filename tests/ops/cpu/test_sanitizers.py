"""The kernels under the address and undefined-behaviour sanitizers, driven by their own tests in a process beside."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "src/ling/ops/cpu/kernels"
TESTS = [*sorted(Path(__file__).parent.glob("test_*.py")), ROOT / "tests/ops/test_packed.py",
         ROOT / "tests/ops/test_choice.py", ROOT / "tests/engine/test_whole_step.py",
         ROOT / "tests/engine/test_head.py", ROOT / "tests/engine/test_schedules.py"]  # fmt: skip
NOT_DRIVERS = ("test_library.py", "test_sanitizers.py")
"""They build and open libraries themselves."""
FLAGS = ["-std=gnu11", "-O1", "-g1", "-fno-var-tracking", "-fPIC", "-fopenmp", "-ffp-contract=off", "-shared",
         "-Wno-psabi", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]  # fmt: skip
WRONG = """
float beyond(const float *x, long i) { return x[i]; }
int overflow(int x) { return x + 1; }
"""
MISUSE = {
    "AddressSanitizer": "wrong.beyond(ctypes.c_void_p(torch.zeros(8).data_ptr()), ctypes.c_long(8))",
    "signed integer overflow": "wrong.overflow(2**31 - 1)",
}
"""What a report says, and the call that it is about."""


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("gcc")
    if found is None:
        pytest.skip("gcc is not installed")
    if not all(Path(runtime).exists() for runtime in runtimes(found)):
        pytest.skip("gcc came without its sanitizers")
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_kernels_are_clean_under_the_sanitizers(compiler: str, tmp_path: Path) -> None:
    built = tmp_path / f"_kernels{EXTENSION_SUFFIXES[0]}"
    subprocess.run([compiler, *FLAGS, *sorted(KERNELS.glob("*.c")), "-o", built], check=True)
    (tmp_path / "sanitized.py").write_text(
        f"from ling.ops.cpu import library\nlibrary.__file__ = {str(tmp_path / 'library.py')!r}\n"
        f"assert library.library() is not None\nassert {str(built)!r} in open('/proc/self/maps').read()\n"
    )
    tests = [str(test) for test in TESTS if test.name not in NOT_DRIVERS]
    command = ["-m", "pytest", "-p", "sanitized", "-p", "no:xdist", "--timeout", "1500", "-m", "not slow", *tests]
    done = run(compiler, command, tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout, done.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("report", MISUSE)
def test_the_sanitizers_see_what_kernels_do_wrong_with_tensors(report: str, compiler: str, tmp_path: Path) -> None:
    source, built = tmp_path / "wrong.c", tmp_path / "wrong.so"
    source.write_text(WRONG)
    subprocess.run([compiler, *FLAGS, source, "-o", built], check=True)
    code = f"import ctypes, torch\nwrong = ctypes.CDLL({str(built)!r})\n{MISUSE[report]}"
    done = run(compiler, ["-c", code], tmp_path)
    assert done.returncode != 0
    assert report in done.stderr, done.stderr[-4000:]


def run(compiler: str, arguments: list[str], path: Path) -> "subprocess.CompletedProcess[str]":
    """Run Python with the runtimes loaded before everything else, so that torch's memory is watched too."""
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes(compiler)),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")]),
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)


def runtimes(compiler: str) -> list[str]:
    """Return the libraries of the sanitizers; just their names where the compiler has none."""
    return [
        subprocess.check_output([compiler, f"-print-file-name={name}.so"], text=True).strip()
        for name in ("libasan", "libubsan")
    ]
