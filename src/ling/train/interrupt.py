"""Stopping between two steps, never inside one: a half-applied update is not a state to resume from."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM asked a run to stop, and it did, with everything written: to the machine that is no failure."""


class StopRequest:
    """Whether somebody asked to stop."""

    made: signal.Signals | None = None

    def obey(self) -> None:
        """Raise what the signal means once everything is written, if there was one."""
        if self.made is not None:
            raise Terminated if self.made == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; the second acts as it did before, at once.

    Outside the main thread, where Python delivers no signals, the request is simply never made.
    """
    request = StopRequest()
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.made = signal.Signals(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        for number in _SIGNALS:
            before[number] = signal.signal(number, ask)
    except ValueError:
        pass  # not the main thread
    try:
        yield request
    finally:
        restore()
