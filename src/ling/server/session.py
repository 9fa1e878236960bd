"""The answers to one HTTP request: from the engine's thread into the event loop, and an end whatever happens.

Whoever opens a session closes it, and closing aborts what still runs: a client that leaves, a deadline, a failure.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ling.engine.loop import EngineLoop
from ling.engine.request import Delta, SamplingParams
from ling.engine.stats import RequestStats
from ling.server.errors import ApiError
from ling.server.times import RequestTimes


class Session:
    """Requests to the engine that make up one HTTP request, one for each prompt."""

    def __init__(self, engine: EngineLoop, request_id: str, times: RequestTimes) -> None:
        self._engine, self._request_id, self._times = engine, request_id, times
        self._events = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Delta] = asyncio.Queue()
        self._prompts: dict[str, int] = {}
        self._stats: dict[str, RequestStats] = {}
        self._left = 0

    def submit(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, grammar: Any = None, salt: str = ""
    ) -> None:
        """Queue every prompt, or none. Raises RequestError or QueueFullError."""
        try:
            for index, prompt in enumerate(prompts):
                id = f"{self._request_id}-{index}"
                stats = self._engine.submit(id, prompt, params, self._deliver, grammar=grammar, salt=salt)
                self._prompts[id], self._stats[id] = index, stats
                self._left += params.n
        except BaseException:
            self.close()
            raise

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yield each delta with the index of its prompt until every answer is finished.

        Raises what made an answer fail, or ApiError if the engine gave it up.
        """
        while self._left:
            delta = await self._queue.get()
            self._times.saw(delta, self._stats[delta.request_id], time.monotonic())
            if delta.finish_reason is not None:
                self._left -= 1
            if delta.finish_reason == "error":
                raise delta.error or RuntimeError("the engine failed without saying why")
            if delta.finish_reason == "abort":
                raise ApiError("the server is shutting down", status=503, code="unavailable", retry_seconds=10)
            yield self._prompts[delta.request_id], delta

    def drafts(self) -> dict[str, int] | None:
        """Return how many tokens were drafted and accepted so far; None: the engine does not draft."""
        if self._engine.engine.drafting == "none":
            return None
        every = self._stats.values()
        return {"drafted": sum(s.drafted for s in every), "accepted": sum(s.accepted for s in every)}

    def close(self) -> None:
        """Abort what still runs."""
        for id in self._prompts if self._left else ():
            self._engine.abort(id)
        self._times.ended(finished=not self._left)
        self._left = 0

    def _deliver(self, delta: Delta) -> None:
        self._events.call_soon_threadsafe(self._queue.put_nowait, delta)  # on the engine's thread
