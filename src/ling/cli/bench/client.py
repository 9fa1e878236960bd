"""A client of OpenAI servers on asyncio, small so that what is timed is the server.

HTTP/1.1, one connection per request; streams are read as they come, event by event.
"""

import asyncio
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from ling.cli.bench.http_answer import HttpAnswer, lines_of
from ling.errors import ConfigError, RequestError

_ROUTE = re.compile(r"/*(v1(/(models|completions|chat/completions))?)?/*$")
"""What people paste behind a server's address."""
_LONGEST_LINE = 16 * 2**20
_LARGEST_ANSWER = 16 * 2**20


class RefusedError(RequestError):
    """A server's answer that is not 200."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status


class Client:
    """Sends requests to one server.

    timeout  seconds without a byte after which a request has failed
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 600.0) -> None:
        self.url = _ROUTE.sub("", url)
        parts = urlsplit(self.url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ConfigError(f"{url} is no address of a server; one looks like http://127.0.0.1:8000")
        self._host, self._path = parts.hostname, parts.path.rstrip("/")
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout = timeout
        self._head = f"Host: {parts.netloc.rpartition('@')[2]}\r\nConnection: close\r\n"
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise ConfigError("the API key has characters that a header cannot carry")
            self._head += f"Authorization: Bearer {api_key}\r\n"

    async def models(self) -> list[str]:
        """Return the ids that `/v1/models` lists. Raises RequestError if the server cannot be talked to."""
        try:
            async with self._send("GET", "/v1/models", None) as (_, pieces):
                answer = json.loads(b"".join([piece async for piece in pieces]))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise RequestError(f"cannot reach {self.url}: {describe(error)}") from None
        except ValueError:
            raise RequestError(f"{self.url}/v1/models answers with something that is not JSON") from None
        listed = answer.get("data") if isinstance(answer, dict) else None
        entries = listed if isinstance(listed, list) else []
        return [e["id"] for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str)]

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Post `body` and yield the events of the answer until its [DONE].

        Raises RefusedError for another status than 200; RequestError for what is no stream, or breaks off; OSError for
        a connection that fails.
        """
        async with self._send("POST", path, json.dumps(body).encode()) as (headers, pieces):
            if not headers.get("content-type", "").startswith("text/event-stream"):
                raise RequestError(f"the answer is no stream but {headers.get('content-type') or 'of no type'}")
            async for line in lines_of(pieces):
                if not line.startswith(b"data:"):
                    continue  # names of events, comments that keep a connection open, blank lines
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield _event(data)
        raise RequestError("the stream broke off before its [DONE]")

    @asynccontextmanager
    async def _send(
        self, method: str, path: str, body: bytes | None
    ) -> AsyncIterator[tuple[dict[str, str], AsyncIterator[bytes]]]:
        """Yield the headers of the answer and the pieces of its body; raises RefusedError unless its status is 200."""
        async with asyncio.timeout(self._timeout):
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=_LONGEST_LINE)
        try:
            head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}"
            if body is not None:
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}\r\n".encode("latin-1") + (body or b""))
            answer = HttpAnswer(reader, self._timeout)
            await answer.read_head()
            if answer.status != 200:
                raise RefusedError(answer.status, await _reason(answer))
            yield answer.headers, answer.pieces()
        finally:
            writer.close()


async def _reason(answer: HttpAnswer) -> str:
    """Return what an answer with an error says, on one short line."""
    content = b""
    try:
        async for piece in answer.pieces():
            content += piece
            if len(content) > _LARGEST_ANSWER:
                break
        told = json.loads(content)
    except (ValueError, RecursionError, RequestError, OSError, asyncio.IncompleteReadError):
        told = content.decode("utf-8", "replace")
    return _told(told) or "no reason given"


def _told(answer: Any) -> str:
    if isinstance(answer, dict):
        answer = answer.get("error") or answer.get("message") or answer.get("detail") or ""
        answer = answer.get("message") if isinstance(answer, dict) else answer
    return " ".join(str(answer or "").split())[:200]


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise RequestError("an event of the stream is not JSON") from None
    if not isinstance(event, dict):
        raise RequestError("an event of the stream is not a JSON object")
    if event.get("error"):
        raise RequestError(f"the stream ends with an error: {_told(event) or 'no reason given'}")
    return event


def describe(error: BaseException) -> str:
    """Return in a few words why a request failed."""
    if isinstance(error, TimeoutError):
        return "no byte came within the time limit"
    if isinstance(error, asyncio.IncompleteReadError):
        return "the answer broke off"
    if isinstance(error, OSError):
        # asyncio words a refused connection its own way, and joins those of several addresses of a name.
        number = error.errno or next(map(int, re.findall(r"Errno (\d+)", str(error))), 0)
        return os.strerror(number) if number > 0 else error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
