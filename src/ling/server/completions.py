"""Answers of `/v1/completions`, streamed or whole. Whole ones are joined from what would have been streamed."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ling.engine.request import Delta, TokenLogprobs
from ling.server.logprobs import LogprobSpeller
from ling.server.prompts import Prompt
from ling.server.schema import CompletionRequest
from ling.server.usage import Drafts, Usage
from ling.tokenizer import IncrementalDetokenizer, Tokenizer

Deltas = AsyncIterator[tuple[int, Delta]]


class CompletionAnswers:
    """What one request is answered with: choice `p * n + i` is answer i to prompt p."""

    def __init__(
        self, request: CompletionRequest, prompts: Sequence[Prompt], tokenizer: Tokenizer, *, id: str, model: str,
        drafts: Drafts,
    ) -> None:  # fmt: skip
        self._request, self._prompts, self._tokenizer = request, prompts, tokenizer
        self._speller = LogprobSpeller(tokenizer, as_ids=request.return_tokens_as_token_ids)
        self._head = {"id": f"cmpl-{id}", "object": "text_completion", "created": int(time.time()), "model": model}
        self._only_prompt = request.max_tokens == 0
        self._usage = Usage([len(prompt.ids) for prompt in prompts], drafts)
        self._judged: dict[int, list[TokenLogprobs | None]] = {}
        """Logprobs of prompts, by their index; they come with the first answer."""
        self._spelt: dict[int, dict[str, Any]] = {}
        """The same as the echo of each answer has them."""
        skip = request.skip_special_tokens
        self._choices = [
            _Choice(self._length_of_echo(prompt), IncrementalDetokenizer(tokenizer, skip_special=skip))
            for prompt in prompts
            for _ in range(request.n)
        ]

    async def chunks(self, deltas: Deltas) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed answer."""
        options = self._request.stream_options
        with_usage = options is not None and options.include_usage
        running = options is not None and options.continuous_usage_stats
        async for index, piece in self._pieces(deltas):
            chunk: dict[str, Any] = {**self._head, "choices": [{"index": index, **piece}]}
            if with_usage or running:
                chunk["usage"] = self._usage.body if running else None
            yield chunk
        if with_usage:
            yield {**self._head, "choices": [], "usage": self._usage.body}

    async def whole(self, deltas: Deltas) -> dict[str, Any]:
        """Return the answer in one piece."""
        joined: list[dict[str, Any]] = [{} for _ in self._choices]
        async for index, piece in self._pieces(deltas):
            _join(joined[index], piece)
        choices = [{"index": index, **choice} for index, choice in enumerate(joined)]
        return {**self._head, "choices": choices, "usage": self._usage.body}

    async def _pieces(self, deltas: Deltas) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """Yield what each delta adds to a choice, and what its prompt does first."""
        waiting: list[tuple[int, Delta]] = []  # answers whose prompt is not judged yet
        async for prompt_index, delta in deltas:
            if self._only_prompt:
                delta.text, delta.token_ids, delta.logprobs = "", [], []
            self._usage.count(prompt_index, delta)
            if delta.prompt_logprobs is not None:
                self._judged[prompt_index] = delta.prompt_logprobs
            waiting.append((prompt_index, delta))
            ready = [item for item in waiting if item[0] in self._judged or not self._judges_prompt]
            waiting = [item for item in waiting if item not in ready]
            for at, item in ready:
                index = at * self._request.n + item.index
                choice = self._choices[index]
                if not choice.began:
                    choice.began = True
                    yield index, await self._piece_of_prompt(at, item.index == 0)
                yield index, self._piece(choice, item)
        assert not waiting, "the engine ended without judging the prompt"

    @property
    def _judges_prompt(self) -> bool:
        return self._request.prompt_logprobs is not None or (self._request.echo and self._request.logprobs is not None)

    async def _piece_of_prompt(self, prompt_index: int, is_first_answer: bool) -> dict[str, Any]:
        prompt, request = self._prompts[prompt_index], self._request
        piece: dict[str, Any] = {"text": "", "logprobs": None, "finish_reason": None}
        judged = self._judged.get(prompt_index)
        if request.echo:
            piece["text"] = self._echo(prompt)
            if request.logprobs is not None and judged is not None:
                if prompt_index not in self._spelt:  # beside the event loop: long prompts take seconds
                    spelling = asyncio.to_thread(self._spell_echo, prompt, judged, request.logprobs)
                    self._spelt[prompt_index] = await spelling
                piece["logprobs"] = self._spelt[prompt_index]
        if request.return_token_ids:
            piece["prompt_token_ids"] = prompt.ids
        if request.prompt_logprobs is not None and judged is not None and is_first_answer:
            piece["prompt_logprobs"] = await asyncio.to_thread(self._speller.prompt, judged)
        return piece

    def _spell_echo(self, prompt: Prompt, judged: list[TokenLogprobs | None], num_top: int) -> dict[str, Any]:
        offsets, text, length = [], IncrementalDetokenizer(self._tokenizer), 0
        for id in prompt.ids:
            offsets.append(length)
            length += len(text.push(id))
        return self._speller.completion(prompt.ids, judged, offsets, num_top)

    def _piece(self, choice: "_Choice", delta: Delta) -> dict[str, Any]:
        piece: dict[str, Any] = {"text": delta.text, "logprobs": None, "finish_reason": None}
        if self._request.logprobs is not None and delta.logprobs:
            offsets = choice.offsets(delta.token_ids)
            logprobs = list(delta.logprobs)
            piece["logprobs"] = self._speller.completion(delta.token_ids, [*logprobs], offsets, self._request.logprobs)
        if self._request.return_token_ids:
            piece["token_ids"] = delta.token_ids
        if delta.finish_reason is not None:
            reason = "length" if self._only_prompt else delta.finish_reason
            piece |= {"finish_reason": reason, "stop_reason": delta.stop_reason}
        return piece

    def _echo(self, prompt: Prompt) -> str:
        return self._tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text

    def _length_of_echo(self, prompt: Prompt) -> int:
        return len(self._echo(prompt)) if self._request.echo else 0


@dataclass(slots=True)
class _Choice:
    length: int
    """Characters before the next token."""
    text: IncrementalDetokenizer
    began: bool = field(default=False)

    def offsets(self, ids: list[int]) -> list[int]:
        """Return where in the choice's text each of the next tokens begins."""
        offsets = []
        for id in ids:
            offsets.append(self.length)
            self.length += len(self.text.push(id))
        return offsets


def _join(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for key, value in piece.items():
        if whole.get(key) is None:
            whole[key] = dict(value) if isinstance(value, dict) else value
        elif key in ("text", "token_ids"):
            whole[key] = whole[key] + value
        elif key == "logprobs" and value is not None:
            whole[key] = {name: whole[key][name] + value[name] for name in value}
        elif value is not None:
            whole[key] = value
