"""Greedy completions of another program, over the OpenAI protocol.

The prompt goes as token ids, so that no difference of tokenizers enters. What comes back is named in several ways: ids
(vLLM: `token_ids`; llama.cpp: `id`), `token_id:N`, or only the tokens' text, which our tokenizer turns back.
"""

import http.client
import itertools
import json
import math
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from ling.errors import RequestError
from ling.eval.agreement import Continuation
from ling.tokenizer import Tokenizer

_ROUTE = re.compile(r"/*(v1(/(models|completions|chat/completions))?)?/*$")
"""What people paste behind a server's address."""
_LARGEST_ANSWER = 64 * 2**20
_EXTRAS = {"return_token_ids": True, "return_tokens_as_token_ids": True}
"""vLLM's names; servers that refuse what they do not know are asked again without."""


class Endpoint:
    """A server that speaks `/v1/completions`, or at least `/v1/chat/completions`."""

    def __init__(
        self, url: str, *, model: str | None = None, api_key: str | None = None, timeout: float = 60.0
    ) -> None:
        """Ask the server what it serves, unless `model` says so. Raises RequestError if it does not answer."""
        self.url = _ROUTE.sub("", url)
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.model = model or self._first_model()

    def complete(self, prompt: Sequence[int], max_tokens: int, tokenizer: Tokenizer) -> Continuation | None:
        """Continue token ids greedily; None if the server has no `/v1/completions`."""
        body = {"model": self.model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0, "logprobs": 1}
        status, answer = self._post("/v1/completions", {**body, **_EXTRAS})
        if status in (400, 422):
            status, answer = self._post("/v1/completions", body)
        if status in (404, 405, 501):
            return None
        return self._read(status, answer, tokenizer, max_tokens)

    def chat(self, text: str, max_tokens: int, tokenizer: Tokenizer) -> Continuation:
        """Answer one message greedily; the server renders and tokenizes it."""
        messages = [{"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "logprobs": True}
        status, answer = self._post("/v1/chat/completions", {**body, **_EXTRAS})
        if status in (400, 422):
            status, answer = self._post("/v1/chat/completions", body)
        return self._read(status, answer, tokenizer, max_tokens)

    def _first_model(self) -> str:
        status, answer = self._send("/v1/models", None)
        listed = answer.get("data") if status == 200 else None
        first = listed[0] if isinstance(listed, list) and listed else None
        name = first.get("id") if isinstance(first, dict) else None
        return name if isinstance(name, str) else "auto"

    def _read(self, status: int, answer: dict[str, Any], tokenizer: Tokenizer, max_tokens: int) -> Continuation:
        if status != 200:
            told = answer.get("error") or answer.get("message") or answer.get("detail") or ""
            reason = told.get("message") if isinstance(told, dict) else told
            raise RequestError(
                f"{self.url} answers {status}: {' '.join(str(reason).split())[:200] or 'no reason given'}"
            )
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            raise RequestError(f"{self.url} answers without choices; is it an OpenAI endpoint?")
        tokens, logprobs = read_choice(choice, tokenizer)
        stops = set(tokenizer.stop_ids)
        ended = choice.get("finish_reason") == "stop"
        while ended and tokens and tokens[-1] in stops:
            tokens, logprobs = tokens[:-1], logprobs[:-1] if logprobs else None
        if any(token < 0 for token in tokens):
            raise RequestError(f"{self.url} answers a negative token id, {min(tokens)}")
        if len(tokens) > max_tokens:
            raise RequestError(f"{self.url} answers {len(tokens)} tokens to max_tokens {max_tokens}")
        return Continuation(tuple(tokens), ended, tuple(logprobs) if logprobs is not None else None)

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return self._send(path, json.dumps(body).encode())

    def _send(self, path: str, body: bytes | None) -> tuple[int, dict[str, Any]]:
        try:
            request = urllib.request.Request(self.url + path, data=body, headers=self._headers)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                    status, content = answer.status, answer.read(_LARGEST_ANSWER)
            except urllib.error.HTTPError as refusal:
                return refusal.code, _object(refusal.read(_LARGEST_ANSWER)) or {}
        except TimeoutError:
            raise RequestError(f"{self.url}{path} did not answer within {self._timeout:g} seconds") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise RequestError(f"{self.url}{path} did not answer within {self._timeout:g} seconds") from None
            raise RequestError(
                f"cannot reach {self.url}: {getattr(error.reason, 'strerror', None) or error.reason}"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RequestError(f"cannot talk to {self.url}: {type(error).__name__} {error}".rstrip()) from None
        if (found := _object(content)) is None:
            raise RequestError(f"{self.url}{path} answers with something that is not a JSON object")
        return status, found


def read_choice(choice: dict[str, Any], tokenizer: Tokenizer) -> tuple[list[int], list[float] | None]:
    """Return the ids and log-probabilities in one choice of an answer, as many as it tells."""
    told = choice.get("logprobs")
    told = told if isinstance(told, dict) else {}
    entries = [entry for entry in _list(told.get("content")) if isinstance(entry, dict)]
    spelt = [entry.get("token") for entry in entries] or _list(told.get("tokens"))
    values: list[Any] = [entry.get("logprob") for entry in entries] or _list(told.get("token_logprobs"))
    ids = _list(choice.get("token_ids")) or [entry.get("id") for entry in entries]
    if not (ids and all(type(x) is int for x in ids)):
        ids = [_id(token, tokenizer) for token in spelt]
    if not ids or None in ids:
        ids = tokenizer.encode(_text(choice))
    numbers = [float(x) for x in itertools.takewhile(_is_number, values[: len(ids)])]
    return ids, numbers or None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def _id(token: Any, tokenizer: Tokenizer) -> int | None:
    """Return the id of a token that is given as text, or None if that is not one token of ours."""
    if not isinstance(token, str):
        return None
    number = token.removeprefix("token_id:")
    if number != token and number.isdecimal():
        return int(number)
    ids = tokenizer.encode(token)
    return ids[0] if len(ids) == 1 else None


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
