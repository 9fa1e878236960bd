"""Serving: a socket, uvicorn around the application, and an orderly end.

At SIGTERM or SIGINT no connection is taken any more, running answers go on for `shutdown_seconds`, what is left is
aborted with an answer that says so, and the engine ends. A second SIGINT ends at once.
"""

import asyncio
import errno
import socket
from collections.abc import Callable

import uvicorn

from ling.errors import ConfigError
from ling.server.app import build_app
from ling.server.protocol import protocol
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
            build_app(service), http=protocol(settings), ws="none", lifespan="off", log_config=None,
            access_log=False, server_header=False, proxy_headers=False,
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
        for pool in (self._service.workers, self._service.tokenizing):
            pool.shutdown(wait=False, cancel_futures=True)


def run(service: Service, taken: socket.socket, ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve until a signal; `ready` is told the address first."""
    ready(address(taken))
    try:
        Server(service, taken).serve_forever()
    except KeyboardInterrupt:
        return  # uvicorn raises the signal once more after an orderly end
