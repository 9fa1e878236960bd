"""The output: a line per answer, in the order in which they are done, each written at once.

A run that was killed may leave its last line torn; the next one cuts it off and answers it again. Whatever else is in
the file must be answers to this input, or the file is left alone.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ling.errors import ConfigError, DataError

_BEGINNING = b'{"index": '


class AnswerFile:
    """Appends to `path`, alone; what is there already is in `answered`, fingerprints by index.

    restart  empty the file first
    Raises DataError if it holds something else than answers, ConfigError if it cannot be written or another run has it.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        self.path = path
        self.answered: dict[int, str] = {}
        self.was_torn = False
        self._is_ours = False
        if path.exists() and not path.is_file():
            raise ConfigError(f"--output {path} must be a file")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        try:
            self._lock()
            self._is_ours = True
            if restart:
                os.ftruncate(self._descriptor, 0)
            self._read()
        except BaseException:
            self.close()
            raise

    def append(self, answer: Mapping[str, Any]) -> None:
        """Write one line. Raises ConfigError if there is no room, or no disk any more; lines before it stay."""
        line = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        assert line.startswith(_BEGINNING), line[:40]
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):  # the system took a part: a full disk says so now
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            raise ConfigError(
                f"cannot write {self.path}: {error.strerror}; the same command goes on from there"
            ) from None

    def close(self) -> None:
        """Let go of the file; one without answers is removed, unless another run is about to fill it."""
        if self._is_ours and not os.fstat(self._descriptor).st_size:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self.path} is being written by another run; wait for it, or choose another") from None
        except OSError:  # a file system without locks
            pass

    def _read(self) -> None:
        end, torn = 0, b""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    torn = line
                    break
                end += len(line)
                self._note(line, number)
        if torn:
            if not (_BEGINNING.startswith(torn) or torn.startswith(_BEGINNING)):
                raise self._foreign(len(self.answered) + 1)
            os.ftruncate(self._descriptor, end)
            self.was_torn = True

    def _note(self, line: bytes, number: int) -> None:
        try:
            answer = json.loads(line)
            index, fingerprint = answer["index"], answer["fingerprint"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._foreign(number) from None
        if type(index) is not int or not isinstance(fingerprint, str):
            raise self._foreign(number)
        self.answered[index] = fingerprint

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"{self.path}:{number} is no answer of `ling generate`; choose another --output, or --restart to empty it"
        )
