"""An engine that answers by rule, a token per step, for tests of what surrounds it."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from ling.engine.request import Delta, Logprob, SamplingParams
from ling.errors import RequestError

LONGEST = 50


class ScriptedEngine:
    """Runs up to `most` requests at once; answer i of a prompt is `<its length>.<i>`, letter by letter.

    on_step  called before each step with its number, to interrupt or to look
    """

    def __init__(self, most: int = 4, on_step: Callable[[int], None] = lambda number: None) -> None:
        self.most, self.on_step = most, on_step
        self.waiting: list[tuple[str, int, SamplingParams, str]] = []
        self.running: list[list[Any]] = []
        self.steps = self.most_running = 0
        self.asked: list[tuple[list[int], SamplingParams]] = []

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    def add(self, request_id: str, prompt: Sequence[int], params: SamplingParams, **_: object) -> None:
        if len(prompt) > LONGEST:
            raise RequestError(f"the prompt has {len(prompt)} tokens, the context {LONGEST}")
        self.asked.append((list(prompt), params))
        for index in range(params.n):
            self.waiting.append((request_id, index, params, f"{len(prompt)}.{index}"[: params.max_tokens]))

    def abort(self, request_id: str) -> list[Delta]:
        self.waiting = [w for w in self.waiting if w[0] != request_id]
        self.running = [r for r in self.running if r[0] != request_id]
        return []

    def step(self) -> list[Delta]:
        self.steps += 1
        self.on_step(self.steps)
        while self.waiting and len(self.running) < self.most:
            self.running.append([*self.waiting.pop(0), 0])
        self.most_running = max(self.most_running, len(self.running))
        deltas = []
        for request in list(self.running):
            id, index, params, text, position = request
            if params.temperature == 9:
                self.running.remove(request)
                deltas.append(Delta(request_id=id, index=index, finish_reason="error", error=ValueError("boom")))
                continue
            letter, request[4] = text[position], position + 1
            delta = Delta(request_id=id, index=index, text=letter, token_ids=[ord(letter)])
            if params.logprobs is not None:
                delta.logprobs = [{ord(letter): Logprob(-0.5, 1, letter)}]
            if request[4] == len(text):
                delta.finish_reason = "stop"
                self.running.remove(request)
            deltas.append(delta)
        return deltas


class ScriptedTokenizer:
    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())


def scripted_llm(engine: ScriptedEngine) -> Any:
    """Return what stands for an `LLM` over `engine`; a chat has ten tokens of format."""

    def chat_prompt(messages: Sequence[Any], tools: Sequence[Any] = ()) -> list[int]:
        if not messages:
            raise RequestError("there are no messages")
        return [0] * (10 + sum(len(m["content"]) for m in messages) + len(tools))

    return SimpleNamespace(engine=engine, tokenizer=ScriptedTokenizer(), chat_prompt=chat_prompt)
