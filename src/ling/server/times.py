"""How long one HTTP request takes, by the stages of its answers."""

import time
from dataclasses import dataclass, field

from ling.engine.request import Delta
from ling.engine.stats import RequestStats
from ling.server.metrics import Metrics

_Answer = tuple[str, int]
"""Request id and index."""


@dataclass(slots=True)
class RequestTimes:
    """Clock of one HTTP request; its answers' tokens report here.

    An answer waits (queue), has its prompt computed (prefill), and gets its tokens (decode); the last two are its
    inference.
    """

    metrics: Metrics
    arrived: float = field(default_factory=time.monotonic)
    _first: dict[_Answer, float] = field(default_factory=dict)
    _last: dict[_Answer, float] = field(default_factory=dict)
    _counts: dict[_Answer, int] = field(default_factory=dict)
    _ended: bool = False

    def saw(self, delta: Delta, stats: RequestStats, now: float) -> None:
        """stats  the engine's, of the same request"""
        key, count = (delta.request_id, delta.index), len(delta.token_ids)
        begun = now if stats.begun is None else stats.begun
        if count:
            if key not in self._first:
                self._first[key] = now
                self.metrics.first_token.observe(now - self.arrived)
                self.metrics.queue.observe(begun - stats.submitted)
                self.metrics.prefill.observe(now - begun)
            else:
                for _ in range(count):  # tokens of one step share its time
                    self.metrics.inter_token.observe((now - self._last[key]) / count)
            self._last[key] = now
            self._counts[key] = self._counts.get(key, 0) + count
        if delta.finish_reason is not None:
            self._answer_ended(delta, now - begun, now)

    def _answer_ended(self, delta: Delta, inference: float, now: float) -> None:
        key = (delta.request_id, delta.index)
        self.metrics.answers.labels(delta.finish_reason).inc()
        if not (tokens := self._counts.get(key, 0)):
            return
        self.metrics.answer_tokens.observe(tokens)
        self.metrics.inference.observe(inference)
        if tokens > 1:
            decode = now - self._first[key]
            self.metrics.decode.observe(decode)
            self.metrics.per_token.observe(decode / (tokens - 1))

    def ended(self, *, finished: bool) -> None:
        """The request is over; only the first call counts."""
        if self._ended:
            return
        self._ended = True
        self.metrics.request.observe(time.monotonic() - self.arrived)
        if not finished:
            self.metrics.aborted.inc()
