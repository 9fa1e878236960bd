"""Answers of `/v1/chat/completions`, streamed or whole. Whole ones are joined from what would have been streamed."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from ling.engine.request import Delta
from ling.server.answer_parser import AnswerParser, ContentDelta, Event, ReasoningDelta, ToolCallStart
from ling.server.logprobs import LogprobSpeller
from ling.server.prompts import Prompt
from ling.server.schema import ChatRequest
from ling.server.usage import Drafts, Usage
from ling.tokenizer import Tokenizer

Deltas = AsyncIterator[tuple[int, Delta]]


class ChatAnswers:
    """What one request is answered with.

    model  the name that the request gave, or that "auto" stands for
    """

    def __init__(
        self, request: ChatRequest, prompt: Prompt, tokenizer: Tokenizer, *, id: str, model: str, drafts: Drafts
    ) -> None:
        self._request, self._prompt = request, prompt
        self._speller = LogprobSpeller(tokenizer, as_ids=request.return_tokens_as_token_ids)
        self._head = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}
        self._choices = [_Choice(request, self._speller) for _ in range(request.n)]
        self._usage = Usage([len(prompt.ids)], drafts)

    async def chunks(self, deltas: Deltas) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed answer."""
        options = self._request.stream_options
        with_usage = options is not None and options.include_usage
        running = options is not None and options.continuous_usage_stats
        began: set[int] = set()
        async for prompt_index, delta in deltas:
            self._usage.count(prompt_index, delta)
            pieces = self._choices[delta.index].push(delta)
            if delta.index not in began:
                began.add(delta.index)
                pieces = [{"delta": {"role": "assistant", "content": ""}}, *pieces]
            for number, piece in enumerate(pieces):
                chunk = self._chunk([{"index": delta.index, "logprobs": None, "finish_reason": None, **piece}])
                if number == 0 and delta.index == 0 and "role" in piece["delta"]:
                    chunk |= self._about_prompt(delta)
                if with_usage or running:
                    chunk["usage"] = self._usage.body if running else None
                yield chunk
        if with_usage:
            yield self._chunk([]) | {"usage": self._usage.body}

    async def whole(self, deltas: Deltas) -> dict[str, Any]:
        """Return the answer in one piece."""
        joined = [_Joined() for _ in self._choices]
        about_prompt: dict[str, Any] = {}
        async for prompt_index, delta in deltas:
            self._usage.count(prompt_index, delta)
            about_prompt |= self._about_prompt(delta) if delta.index == 0 else {}
            for piece in self._choices[delta.index].push(delta):
                joined[delta.index].add(piece)
        choices = [{"index": index, **choice.body(self._request)} for index, choice in enumerate(joined)]
        body = {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage.body}
        return body | about_prompt

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}

    def _about_prompt(self, delta: Delta) -> dict[str, Any]:
        about: dict[str, Any] = {}
        if self._request.return_token_ids:
            about["prompt_token_ids"] = self._prompt.ids
        if self._request.prompt_logprobs is not None and delta.prompt_logprobs is not None:
            about["prompt_logprobs"] = self._speller.prompt(delta.prompt_logprobs)
        return about


class _Choice:
    """One answer, from the engine's deltas to the API's."""

    def __init__(self, request: ChatRequest, speller: LogprobSpeller) -> None:
        self._request, self._speller = request, speller
        self._parser = AnswerParser(tools=request.may_call, reasoning=True)
        self._most_calls = None if request.parallel_tool_calls else 1
        self._called = False

    def push(self, delta: Delta) -> list[dict[str, Any]]:
        """Return what `delta` adds, as choices of chunks without their index; the last has the finish reason."""
        events = self._parser.push(delta.text)
        if delta.finish_reason is not None:
            events += self._parser.finish()
        pieces: list[dict[str, Any]] = [
            {"delta": spelt} for event in events if (spelt := self._spell(event)) is not None
        ]
        extra: dict[str, Any] = {}
        if delta.logprobs:
            extra["logprobs"] = {"content": self._speller.chat(delta.logprobs, self._request.top_logprobs or 0)}
        if self._request.return_token_ids and delta.token_ids:
            extra["token_ids"] = delta.token_ids
        if extra:
            pieces = pieces or [{"delta": {}}]
            pieces[0] |= extra
        if delta.finish_reason is not None:
            reason = "tool_calls" if self._called and delta.finish_reason == "stop" else delta.finish_reason
            pieces.append({"delta": {}, "finish_reason": reason, "stop_reason": delta.stop_reason})
        return pieces

    def _spell(self, event: Event) -> dict[str, Any] | None:
        if isinstance(event, ContentDelta):
            return {"content": event.text}
        if isinstance(event, ReasoningDelta):
            return {"reasoning_content": event.text}
        if self._most_calls is not None and event.index >= self._most_calls:
            return None
        self._called = True
        if isinstance(event, ToolCallStart):
            function = {"name": event.name, "arguments": ""}
            id = f"call_{uuid.uuid4().hex[:24]}"
            return {"tool_calls": [{"index": event.index, "id": id, "type": "function", "function": function}]}
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}


class _Joined:
    """One answer put together from its chunks."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._ids: list[int] = []
        self._end: dict[str, Any] = {}

    def add(self, piece: dict[str, Any]) -> None:
        for name, texts in self._texts.items():
            texts.append(piece["delta"].get(name, ""))
        for call in piece["delta"].get("tool_calls", ()):
            if call["index"] == len(self._calls):
                self._calls.append({key: call[key] for key in ("id", "type", "function")})
            else:
                self._calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        self._logprobs += (piece.get("logprobs") or {}).get("content", ())
        self._ids += piece.get("token_ids", ())
        if "finish_reason" in piece:
            self._end = {key: piece[key] for key in ("finish_reason", "stop_reason")}

    def body(self, request: ChatRequest) -> dict[str, Any]:
        content, reasoning = ("".join(self._texts[name]) for name in ("content", "reasoning_content"))
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self._calls else "")}
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = self._calls
        logprobs = {"content": self._logprobs, "refusal": None} if request.logprobs else None
        ids = {"token_ids": self._ids} if request.return_token_ids else {}
        return {"message": message, "logprobs": logprobs, **self._end, **ids}
