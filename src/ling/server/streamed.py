"""Server-sent events, and an end to them whatever happens."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ling.server.errors import ApiError

DONE = b"data: [DONE]\n\n"
_LAST_WORDS_SECONDS = 5.0


class EventStream(Response):
    """Sends each object of `chunks` as an event, then DONE. A failure on the way is the last event before it.

    deadline  when, by the event loop's clock, the stream is given up; None: never
    explain   makes of a failure what the client may know
    close     called at the end, perhaps twice, also if nothing was ever sent
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterator[dict[str, Any]],
        *,
        deadline: float | None,
        explain: Callable[[Exception], ApiError],
        close: Callable[[], None],
    ) -> None:
        super().__init__(status_code=200, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._deadline, self._explain, self._close = chunks, deadline, explain, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()  # nothing, where it is done
            await asyncio.gather(sending, leaving, return_exceptions=True)
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last_words = DONE
        try:
            async with asyncio.timeout_at(self._deadline), aclosing(self._chunks) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": event(chunk), "more_body": True})
        except Exception as error:
            self._close()  # now: a client that reads nothing may hold up what follows
            last_words = event(self._explain(error).body) + DONE
        async with asyncio.timeout(_LAST_WORDS_SECONDS):
            await send({"type": "http.response.body", "body": last_words, "more_body": False})


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


async def gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Any) -> Any:
    """Return what the coroutine `work` does; if the client leaves first, cancel it and raise ApiError."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError("the client left", status=408)
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
