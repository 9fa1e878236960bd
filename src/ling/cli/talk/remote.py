"""Asking a server for an answer, over the OpenAI protocol."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ling.cli.bench.client import Client, describe
from ling.cli.bench.load import choices_of, piece_of
from ling.cli.bench.probe import first_model
from ling.cli.talk.answer import Answer
from ling.errors import RequestError


class Server:
    """Answers by `/v1/chat/completions` at `url`.

    fields  added to each request, such as temperature
    Raises RequestError if the server is not there.
    """

    def __init__(self, url: str, fields: Mapping[str, Any], *, api_key: str | None = None) -> None:
        self._client = Client(url, api_key=api_key)
        self._body = {"model": first_model(self._client), **fields}
        self._body |= {"stream": True, "stream_options": {"include_usage": True}}

    def ask(self, messages: Sequence[Mapping[str, Any]], show: Callable[[str], None]) -> Answer:
        """Stream an answer into `show`; Ctrl-C ends it early. Raises RequestError."""
        answer = Answer()
        begin = time.perf_counter()
        try:
            asyncio.run(self._ask({**self._body, "messages": list(messages)}, answer, show))
        except KeyboardInterrupt:
            answer.finish_reason = None
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise RequestError(f"{self._client.url}: {describe(error)}") from None
        answer.seconds = time.perf_counter() - begin
        return answer

    async def _ask(self, body: Mapping[str, Any], answer: Answer, show: Callable[[str], None]) -> None:
        begin = time.perf_counter()
        async for event in self._client.stream("/v1/chat/completions", body):
            for choice in choices_of(event):
                text, has_token = piece_of(choice)
                if has_token and not answer.tokens:
                    answer.first_seconds = time.perf_counter() - begin
                answer.tokens += has_token
                answer.text += text
                answer.finish_reason = choice.get("finish_reason")
                show(text)
            if isinstance(usage := event.get("usage"), dict):
                answer.tokens = int(usage.get("completion_tokens") or answer.tokens)
