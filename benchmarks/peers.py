"""Environments of the software we compare with: described in benchmarks/envs, built once, reused."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = Path(__file__).parent / "envs"
BUILT = ROOT / ".venvs"


def peer_python(name: str) -> Path:
    """Return the interpreter of environment `name`, building it if its description is new."""
    description = ENVIRONMENTS / f"{name}.txt"
    if not description.exists():
        known = ", ".join(sorted(p.stem for p in ENVIRONMENTS.glob("*.txt")))
        sys.exit(f"no peer environment {name}; known: {known}")
    described = description.read_text(encoding="utf-8")
    digest = hashlib.sha256(described.encode() + sys.version.encode()).hexdigest()[:12]
    directory = BUILT / f"{name}-{digest}"
    python = directory / "bin/python"
    if not (directory / ".complete").exists():
        print(f"building the environment {name} (once)", file=sys.stderr, flush=True)
        venv.create(directory, with_pip=True, clear=True)
        alone = ["--no-deps"] if "# alone" in described.splitlines() else []
        command = [python, "-m", "pip", "install", "--quiet", *alone, "--requirement", description]
        subprocess.run(command, check=True, env={**os.environ, **build_variables(described)})
        if unwanted := _named(described, "# uninstall after:"):
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted], check=True)
        (directory / ".complete").touch()
    if "ling" in _named(described, "# with:"):  # each time: it is quick, and entry points may have changed
        command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT]
        subprocess.run(command, check=True)
    return python


def peer_packages(name: str) -> Path:
    """Return the directory that holds the packages of environment `name`, building it if its description is new."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([peer_python(name), "-c", code], text=True).strip())


def run_in_peer(name: str, module: str, *arguments: str) -> int:
    """Run `python -m module` in environment `name`, with this checkout importable; return its exit code."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [str(peer_python(name)), "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def build_variables(described: str) -> dict[str, str]:
    """Return the variables that lines `# environment: NAME=VALUE` set while packages are built."""
    marked = [line.partition("# environment: ") for line in described.splitlines()]
    return dict(setting.split("=", 1) for before, mark, setting in marked if mark and not before)


def _named(described: str, marker: str) -> list[str]:
    """Return the packages that a description's comment `marker` names."""
    return [
        name for line in described.splitlines() if line.startswith(marker) for name in line.removeprefix(marker).split()
    ]
