"""HTTP/1.1 with limits on connections: how many, how long a request's headers take, how long an answer is not taken."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ling.server.errors import ApiError
from ling.server.settings import ServerSettings


def protocol(settings: ServerSettings) -> type[H11Protocol]:
    """Return uvicorn's HTTP/1.1, and its limits. What it says itself is an error of the API like any other."""

    class PatientProtocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None
        _looking: asyncio.TimerHandle | None = None
        _unsent = 0
        """Bytes that waited for the client at the last look."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._inner, self.app = self.app, self._unless_crowded

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > 2 * settings.max_connections:
                transport.abort()  # connections that never send a request must not use up the process's files
            self._wait()
            self._look()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            if self._looking is not None:
                self._looking.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            body = ApiError("this is not HTTP/1.1 as the server understands it").response()
            headers = [*body.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=body.status_code, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(body.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        async def _unless_crowded(self, scope: Any, receive: Any, send: Any) -> None:
            if len(self.connections) < settings.max_connections:
                await self._inner(scope, receive, send)
                return
            crowded = ApiError(f"all {settings.max_connections} connections are taken", status=503, retry_seconds=1)
            response = crowded.response()
            response.headers["Connection"] = "close"
            await response(scope, receive, send)

        def _wait(self) -> None:
            """Run the clock exactly while headers are awaited, or the rest of a body that was answered already."""
            answered = self.cycle is not None and self.cycle.response_complete
            awaited = (h11.IDLE, h11.SEND_BODY) if answered else (h11.IDLE,)
            if self.conn.their_state not in awaited or self.transport.is_closing():
                self._stop_waiting()
            elif self._waiting is None:
                self._waiting = self.loop.call_later(settings.read_seconds, self._give_up)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _give_up(self) -> None:
            self._waiting = None
            if not self.transport.is_closing():
                self.transport.close()

        def _look(self) -> None:
            """Cut the connection if nothing of a finished answer went out since the last look: closing would wait."""
            unsent = self.transport.get_write_buffer_size()
            is_over = self.transport.is_closing() or self.cycle is None or self.cycle.response_complete
            if is_over and unsent and unsent == self._unsent:
                self.transport.abort()
                return
            self._unsent = unsent
            self._looking = self.loop.call_later(settings.read_seconds, self._look)

    return PatientProtocol
