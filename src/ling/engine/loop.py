"""The engine on a thread of its own: requests in from any thread, deltas out through a callback.

The thread alone touches the engine. Others leave messages in an inbox that it empties before every step, so an
abort acts within one step whatever stage its request is at. A step that fails takes its own requests with it and
nothing else (`Engine.step` sees to that); should the engine itself be broken, every request is told, and `alive`
says so.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ling.engine.core import Engine
from ling.engine.grammar import Grammar
from ling.engine.request import Delta, SamplingParams
from ling.engine.stats import RequestStats
from ling.errors import QueueFullError, RequestError
from ling.ops.cpu.library import release_memory

logger = logging.getLogger(__name__)

Deliver = Callable[[Delta], None]
"""Takes the deltas of a request, on the engine's thread; must not block and should not raise."""

_IDLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Submission:
    request_id: str
    prompt: list[int]
    params: SamplingParams
    grammar: Grammar | None
    salt: str
    deliver: Deliver


class EngineLoop:
    """Runs `engine` until `stop`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inbox: deque[_Submission | str] = deque()
        self._deliver: dict[str, Deliver] = {}
        self._left: dict[str, int] = {}
        """Answers of each request that are not finished."""
        self._stats: dict[str, RequestStats] = {}
        """Of the same requests."""
        self._wake = threading.Condition()
        self._stopping = self._draining = False
        self._broken: Exception | None = None
        self._last_progress = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> "EngineLoop":
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        """Whether the thread runs and the engine is whole."""
        return self._thread.is_alive() and self._broken is None

    @property
    def seconds_since_progress(self) -> float:
        """Since a step ended, or since there was nothing to do; large while work waits means stuck."""
        return time.monotonic() - self._last_progress

    @property
    def num_unfinished(self) -> int:
        """Requests that are queued or running."""
        return len(self._left)

    @property
    def draining(self) -> bool:
        return self._draining

    def submit(
        self,
        request_id: str,
        prompt: Sequence[int],
        params: SamplingParams,
        deliver: Deliver,
        *,
        grammar: Grammar | None = None,
        salt: str = "",
    ) -> RequestStats:
        """Queue a request; from any thread. Returns its counters, which are kept up until it ends.

        deliver  gets its deltas; the last of each of the `params.n` answers has a finish reason
        grammar  what `params.structured_outputs` was compiled to
        salt     prompts share cached blocks only with prompts of the same salt
        Raises RequestError if it can never run, QueueFullError if too many wait or the engine is stopping.
        """
        ids = list(prompt)
        self.engine.check(ids, params)
        with self._wake:
            if not self.alive:
                raise QueueFullError("the engine has stopped")
            if self._draining or self._stopping:
                raise QueueFullError("the engine is shutting down and takes no new requests")
            if request_id in self._left:
                raise RequestError(f"request id {request_id} is in use")
            if self._num_waiting() >= self.engine.config.max_num_queued:
                raise QueueFullError(f"{self.engine.config.max_num_queued} requests wait already; try again later")
            self._left[request_id] = params.n
            self._stats[request_id] = stats = RequestStats(time.monotonic())
            self._deliver[request_id] = deliver
            self._inbox.append(_Submission(request_id, ids, params, grammar, salt, deliver))
            self._wake.notify()
        return stats

    def abort(self, request_id: str) -> None:
        """Forget a request within a step, whatever it is doing; its answers end with finish reason "abort"."""
        with self._wake:
            if request_id in self._left:
                self._inbox.append(request_id)
                self._wake.notify()

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no new requests, let running ones go on for `drain_seconds`, then abort what is left and end."""
        with self._wake:
            self._draining = True
        deadline = time.monotonic() + drain_seconds
        while self._left and self.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        with self._wake:
            self._inbox.extend(self._left)
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(30)

    def _num_waiting(self) -> int:
        return self.engine.num_waiting + sum(isinstance(m, _Submission) for m in self._inbox)

    def _run(self) -> None:
        try:
            while self._receive():
                deltas = self._step()
                self._last_progress = time.monotonic()
                for delta in deltas:
                    self._hand_over(delta)
        except BaseException as error:  # a panic of llguidance's Rust is no Exception, and nobody else would hear of it
            logger.exception("the engine failed; it takes no more requests")
            self._broken = error if isinstance(error, Exception) else RuntimeError(f"the engine failed: {error}")
            with self._wake:
                left = list(self._left.items())
            for request_id, count in left:
                for index in range(count):
                    self._hand_over(
                        Delta(request_id=request_id, index=index, finish_reason="error", error=self._broken)
                    )
        finally:
            release_memory()

    def _step(self) -> list[Delta]:
        """Run a step, and say in the counters of each request what it did."""
        begin = time.monotonic()
        drafts = {(s.request_id, s.index): tuple(s.drafts) for s in self.engine.scheduler.running if s.drafts}
        deltas = self.engine.step()
        met = {s.request_id for s in self.engine.scheduler.running} | {delta.request_id for delta in deltas}
        for name in met:
            if (stats := self._stats.get(name)) is not None and stats.begun is None:
                stats.begun = begin
        for delta in deltas:
            if (stats := self._stats.get(delta.request_id)) is not None and delta.token_ids:
                stats.count_drafts(drafts.get((delta.request_id, delta.index), ()), delta.token_ids)
        return deltas

    def _receive(self) -> bool:
        """Take what is in the inbox, waiting while there is nothing to do; False: time to end."""
        with self._wake:
            while not self._inbox and not self.engine.has_work:
                if self._stopping:
                    return False
                self._last_progress = time.monotonic()
                self._wake.wait(_IDLE_SECONDS)
            messages = list(self._inbox)
            self._inbox.clear()
        for message in messages:
            if isinstance(message, str):
                for delta in self.engine.abort(message):
                    self._hand_over(delta)
            else:
                self._add(message)
        return True

    def _add(self, new: _Submission) -> None:
        try:
            self.engine.add(new.request_id, new.prompt, new.params, grammar=new.grammar, salt=new.salt)
        except Exception as error:  # whatever is wrong with this one, the others go on
            if not isinstance(error, RequestError):
                logger.exception("request %s could not be added", new.request_id)
            for index in range(new.params.n):
                self._hand_over(Delta(request_id=new.request_id, index=index, finish_reason="error", error=error))

    def _hand_over(self, delta: Delta) -> None:
        with self._wake:
            deliver = self._deliver.get(delta.request_id)
            if delta.finish_reason is not None and delta.request_id in self._left:
                self._left[delta.request_id] -= 1
                if not self._left[delta.request_id]:
                    del self._left[delta.request_id], self._deliver[delta.request_id]
                    del self._stats[delta.request_id]
        if deliver is None:
            return
        try:
            deliver(delta)
        except Exception:  # a listener that is gone: nobody reads the answer, and the others go on
            logger.exception("request %s: its listener failed", delta.request_id)
            self.abort(delta.request_id)
