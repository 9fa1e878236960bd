"""Work on a stream of items by this process or by several, taken back in order.

Nothing that comes out depends on how many processes there were. This module is what each of them imports: it is kept
free of torch, which would take them seconds.
"""

import collections
import concurrent.futures
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from ling.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4
"""Items that wait for each process."""


def map_in_order(
    work: Callable[[Item], Result], items: Iterator[Item], workers: int, *, advice: str
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with what `work` made of it, in order.

    work     pickles, once for each process
    workers  processes; 0: this one alone
    advice   ends the message of the DataError that is raised if a process dies
    """
    if not workers:
        yield from ((item, work(item)) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    waiting: collections.deque[tuple[Item, concurrent.futures.Future[Result]]] = collections.deque()
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (work,))
    try:
        for item in items:
            with _interrupts_ignored():  # by processes that this starts: their parent decides
                future: concurrent.futures.Future[Result] = pool.submit(_work_on, item)
            waiting.append((item, future))
            if len(waiting) >= workers * _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool:
        raise DataError(f"a process that tokenises has died, of too little memory perhaps; {advice}") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; processes that are started then ignore it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_work: Callable[[Any], Any] | None = None  # of a worker process


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _work_on(item: Any) -> Any:
    assert _work is not None
    return _work(item)
