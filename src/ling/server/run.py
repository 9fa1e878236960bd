"""Serving: a socket, uvicorn around the application, and an orderly end.

At SIGTERM or SIGINT no connection is taken any more, running answers go on for `shutdown_seconds`, what is left is
aborted with an answer that says so, and the engine ends. A second SIGINT ends at once.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ling.errors import ConfigError
from ling.server.app import build_app
from ling.server.service import Service
from ling.server.settings import ServerSettings

_AFTER_DRAIN_SECONDS = 5.0
_BACKLOG = 128


def bind(settings: ServerSettings) -> socket.socket:
    """Take the address. Raises ConfigError in one line if somebody else has it, or it is none of this machine's."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((settings.host, settings.port))
        taken.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        taken.close()
        where = f"{settings.host} port {settings.port}"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use; stop what uses it or choose another --port") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen at {where}: {reason}") from None
    return taken


def address(taken: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """Serves `service` on a bound socket."""

    def __init__(self, service: Service, taken: socket.socket) -> None:
        settings = service.settings
        self._service, self._taken = service, taken
        config = uvicorn.Config(
            build_app(service), http=_protocol(settings), ws="none", lifespan="off", log_config=None,
            access_log=False, server_header=False, proxy_headers=False, limit_concurrency=settings.max_connections,
            h11_max_incomplete_event_size=settings.max_header_bytes + 4096,  # its request line included
            timeout_keep_alive=max(1, round(settings.read_seconds)),
            timeout_graceful_shutdown=int(settings.shutdown_seconds + _AFTER_DRAIN_SECONDS + 1),
        )  # fmt: skip
        super().__init__(config)

    def serve_forever(self) -> None:
        """Serve until a signal, or until `should_exit` is set."""
        asyncio.run(self.serve(sockets=[self._taken]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        seconds = 0.0 if self.force_exit else self._service.settings.shutdown_seconds
        draining = loop.run_in_executor(None, self._service.engine.stop, seconds)
        await super().shutdown(sockets)
        await draining
        self._service.workers.shutdown(wait=False, cancel_futures=True)


def _protocol(settings: ServerSettings) -> type[H11Protocol]:
    """Return uvicorn's HTTP/1.1, with a limit on how long the headers of a request may take."""

    class PatientProtocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > 2 * settings.max_connections:
                transport.abort()  # connections that never send a request must not use up the process's files
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            """Run the clock exactly while the headers of a request are awaited."""
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
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

    return PatientProtocol


def run(service: Service, taken: socket.socket, ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve until a signal; `ready` is told the address first."""
    ready(address(taken))
    try:
        Server(service, taken).serve_forever()
    except KeyboardInterrupt:
        return  # uvicorn raises the signal once more after an orderly end
