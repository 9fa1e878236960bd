"""What people install: the wheel, alone, in an environment that has never seen this repository."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, cwd=target)
    (built,) = target.glob("*.whl")
    return built


def environment(directory: Path) -> Path:
    """Make an empty virtual environment; return its interpreter."""
    venv.create(directory, with_pip=True)
    return directory / "bin/python"


def check(python: Path, elsewhere: Path) -> None:
    def ling(*arguments: str) -> str:
        command = [str(python.parent / "ling"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env={"PATH": "/usr/bin:/bin"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert ling("--version").strip()
    assert "16,255,638,528" in ling("config", "--preset", "ling_mini")
    assert "Ling" in ling("generate", "Who are you?")
    code = (
        "import ling.data.builtin as b, ling.cli.demo.report as r, ling; from ling.data.books import split_books;"
        "assert len(split_books(1.0)[0]) > 1000; assert r._TEMPLATE.exists(); print(ling.__file__)"
    )
    where = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=elsewhere, check=True).stdout
    assert str(python.parents[1]) in where


def test_the_wheel_works_beside_its_dependencies(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are borrowed from this environment; nothing of the repository is."""
    python = environment(tmp_path / "venv")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, cwd=tmp_path)
    site = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    check(python, tmp_path)


@pytest.mark.slow
def test_the_wheel_installs_with_everything_it_needs(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, cwd=tmp_path)
    check(python, tmp_path)
