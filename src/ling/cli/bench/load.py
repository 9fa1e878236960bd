"""Driving a server: requests go out at a rate or as many at once as allowed, and every answer is timed."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ling.cli.bench.client import Client, describe
from ling.cli.bench.prompts import Prompt
from ling.errors import ConfigError, LingError, RequestError


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One request, in seconds since the load began."""

    started: float = 0.0
    """When it was sent; waiting for a place among `max_concurrency` is before that."""
    ended: float = 0.0
    """When the last token came."""
    ttft: float = 0.0
    """Until the first token, from `started`; opening the connection is in it."""
    gaps: list[float] = field(default_factory=list)
    """Between pieces of the answer; a piece has several tokens where drafts were accepted."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    counted_pieces: bool = False
    """The server told no usage: `output_tokens` are pieces."""
    text: str = ""
    error: str | None = None
    done: bool = False

    @property
    def latency(self) -> float:
        return self.ended - self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How each prompt is put to the server."""

    model: str
    path: str = "/v1/completions"
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Added to every body."""

    @property
    def is_chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return what is posted. Raises ConfigError for a prompt that the path does not take."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": prompt.output_tokens, "stream": True}
        body["stream_options"] = {"include_usage": True}
        content = prompt.content
        is_messages = isinstance(content, list) and bool(content) and isinstance(content[0], Mapping)
        if not self.is_chat:
            if is_messages:
                raise ConfigError(f"messages need --endpoint /v1/chat/completions, {self.path} takes text or ids")
            return {**body, "prompt": content, **self.fields}
        if not is_messages and not isinstance(content, str):
            raise ConfigError(f"{self.path} takes no token ids; use --endpoint /v1/completions for them")
        messages = content if is_messages else [{"role": "user", "content": content}]
        return {**body, "messages": messages, **self.fields}


class Load:
    """Sends `prompts` and keeps what became of each; what is there stays readable when it is interrupted."""

    def __init__(self, client: Client, ask: Ask, prompts: Sequence[Prompt]) -> None:
        self.outcomes: list[Outcome] = []
        """Of the requests that were sent, in order of sending."""
        self.seconds = 0.0
        self.most_at_once = 0
        self._client, self._ask, self._prompts = client, ask, prompts
        self._at_once = 0
        self._begin = 0.0

    def run(
        self,
        *,
        rate: float = float("inf"),
        max_concurrency: int | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Send everything and wait for the answers.

        rate  requests per second, arriving as a Poisson process; infinite: all at once
        """
        try:
            asyncio.run(self._run(rate, max_concurrency, seed, progress))
        finally:
            self.seconds = self._now() if self._begin else 0.0

    async def _run(self, rate: float, most: int | None, seed: int, progress: Callable[[int, int], None]) -> None:
        draw = random.Random(seed)
        places = asyncio.Semaphore(most or max(1, len(self._prompts)))
        done = 0

        async def one(prompt: Prompt) -> None:
            nonlocal done
            async with places:
                await self._one(prompt)
            done += 1
            progress(done, len(self._prompts))

        self._begin = time.perf_counter()
        due = 0.0
        async with asyncio.TaskGroup() as tasks:
            for prompt in self._prompts:
                if (wait := due - self._now()) > 0:
                    await asyncio.sleep(wait)
                tasks.create_task(one(prompt))
                due += draw.expovariate(rate) if rate != float("inf") else 0.0

    async def _one(self, prompt: Prompt) -> None:
        outcome = Outcome(started=self._now())
        self.outcomes.append(outcome)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self._ask_for(prompt, outcome)
            outcome.done = True
        except (LingError, OSError, ValueError, KeyError, TypeError, asyncio.IncompleteReadError) as error:
            outcome.error = describe(error)
        finally:
            self._at_once -= 1

    async def _ask_for(self, prompt: Prompt, outcome: Outcome) -> None:
        pieces, finished = 0, False
        last = outcome.started
        async for event in self._client.stream(self._ask.path, self._ask.body(prompt)):
            now = self._now()
            if isinstance(usage := event.get("usage"), dict):
                outcome.prompt_tokens = int(usage.get("prompt_tokens") or 0)
                outcome.output_tokens = int(usage.get("completion_tokens") or 0)
            for choice in choices_of(event):
                text, has_token = piece_of(choice)
                ends = choice.get("finish_reason") is not None
                finished |= ends
                if has_token or (ends and not pieces):
                    pieces += 1
                    outcome.text += text
                    if pieces == 1:
                        outcome.ttft = now - outcome.started
                    else:
                        outcome.gaps.append(now - last)
                    outcome.ended = last = now
        if not finished:
            raise RequestError("the answer has no finish_reason")
        if not outcome.output_tokens:
            outcome.output_tokens, outcome.counted_pieces = pieces, True

    def _now(self) -> float:
        return time.perf_counter() - self._begin


def choices_of(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the choices of an event; the last one, with the usage, may have none. Raises RequestError."""
    choices = event.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise RequestError("an event of the stream has choices that are no list of objects")
    return choices


def piece_of(choice: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the text of a choice in an event, and whether it brings a token.

    A token may have no text, such as half a character; what brings none is a chat's first event, which names the role,
    and an empty last one.
    """
    delta = choice.get("delta")
    said = delta if isinstance(delta, Mapping) else {"content": choice.get("text")}
    text = "".join(x for x in (said.get("reasoning_content"), said.get("content")) if isinstance(x, str))
    empty_but_counts = choice.get("finish_reason") is None and "role" not in said
    return text, bool(text or said.get("tool_calls") or empty_but_counts)
