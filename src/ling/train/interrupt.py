"""Stopping between two steps, never inside one: a half-applied update is not a state to resume from."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked to stop."""

    made = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; the second acts as it did before, at once.

    Outside the main thread, where Python delivers no signals, the request is simply never made.
    """
    request = StopRequest()
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.made = True
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
