"""An answer and what it took; asking the engine for one."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ling.engine.llm import LLM
    from ling.engine.request import Delta, SamplingParams


class Talker(Protocol):
    """Whoever answers."""

    def ask(self, messages: Sequence[Mapping[str, Any]], show: Callable[[str], None]) -> "Answer":
        """Stream an answer into `show`; Ctrl-C ends it early. Raises LingError for what cannot be asked."""


@dataclass(slots=True)
class Answer:
    """What was said, whole or until it was stopped."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    """Until the first token."""
    drafted: int = 0
    accepted: int = 0
    finish_reason: str | None = None
    """None: it was stopped by the person."""

    def take(self, delta: "Delta", seconds: float) -> None:
        """Add what came `seconds` after the question. Raises what the answer failed of."""
        if delta.error is not None:
            raise delta.error
        if delta.token_ids and not self.tokens:
            self.first_seconds = seconds
        self.tokens += len(delta.token_ids)
        self.text += delta.text
        self.finish_reason = delta.finish_reason

    def describe(self) -> str:
        """Return one line of figures."""
        after = self.seconds - self.first_seconds
        rate = f", {(self.tokens - 1) / after:.1f} per second" if self.tokens > 1 and after > 0 else ""
        drafts = f", {100 * self.accepted / self.drafted:.0f} % of drafts accepted" if self.drafted else ""
        cut = ", cut at --max-tokens or the context's end" if self.finish_reason == "length" else ""
        tokens = f"{self.tokens} token{'' if self.tokens == 1 else 's'}"
        return f"{tokens}, first after {self.first_seconds:.2f} s{rate}{drafts}{cut}"


class Model:
    """Answers by an engine of our own."""

    def __init__(self, llm: "LLM", params: "SamplingParams") -> None:
        self._llm, self._params = llm, params

    def ask(self, messages: Sequence[Mapping[str, Any]], show: Callable[[str], None]) -> Answer:
        """Stream an answer into `show`; Ctrl-C ends it early, between two steps. Raises LingError.

        A second Ctrl-C interrupts whatever runs, as ever.
        """
        from ling.train.interrupt import stop_on_signal

        engine, answer = self._llm.engine, Answer()
        drafted, accepted = engine.stats.drafted, engine.stats.accepted
        name = f"chat-{engine.stats.requests}"
        begin = time.perf_counter()
        engine.add(name, self._llm.chat_prompt(messages), self._params)
        try:
            with stop_on_signal() as stop:
                while engine.has_work and stop.made is None:
                    for delta in engine.step():
                        answer.take(delta, time.perf_counter() - begin)
                        show(delta.text)
        finally:
            engine.abort(name)
        answer.seconds = time.perf_counter() - begin
        answer.drafted, answer.accepted = engine.stats.drafted - drafted, engine.stats.accepted - accepted
        if stop.made == signal.SIGTERM:
            stop.obey()
        return answer
