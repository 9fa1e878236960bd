"""Wall time of a run that may have been stopped and resumed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the wall time spent inside `running`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._began is None else time.perf_counter() - self._began)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._began = time.perf_counter()
        try:
            yield
        finally:
            self._before, self._began = self.seconds, None
