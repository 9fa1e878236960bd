"""What every request passes before a route sees it: host, origin, key, and its body in time and in bounds.

Deny by default: a route needs the key unless it is in `OPEN`, so a route added later is guarded already. What a web
page of another origin sends is refused, and so is a name for this machine that is not its own (DNS rebinding).
"""

import asyncio
import hashlib
import hmac
import logging
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ling.server.errors import ApiError, as_api_error
from ling.server.settings import ServerSettings

logger = logging.getLogger(__name__)

OPEN = frozenset({"/health", "/"})
"""Paths that need no key: whether the server lives, and the page, which holds nothing and asks for the key itself."""

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_BUFFERED_BODIES = 16
"""So many bodies of the largest size may be on their way in at once."""


class Guard:
    """Wraps `app`. In `scope["state"]` a route finds `request_id`, `body` (bytes, whole) and `tenant` (a salt)."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.settings = settings
        self._keys = [_digest(key) for key in settings.api_keys]
        self._hosts = _LOOPBACK_NAMES | {settings.host, f"[{settings.host}]", *settings.allowed_hosts}
        self._buffered = 0
        self._inner = app
        self._app: ASGIApp = self._guarded
        if settings.allowed_origins:
            self._app = CORSMiddleware(
                self._guarded, allow_origins=settings.allowed_origins, allow_methods=["GET", "POST"],
                allow_headers=["*"], allow_credentials=False,
            )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"only HTTP is served, not {scope['type']}")
        request_id = f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except Exception as error:
            logger.exception("%s failed", request_id)
            if not started:
                await as_api_error(error, request_id).response()(scope, receive, send_marked)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._admit(scope, receive)
        except ApiError as error:
            response = error.response()
            response.headers["Connection"] = "close"  # the rest of the body is not waited for
            await response(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        self._check_headers(scope["headers"])
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        if scope["path"] not in OPEN:
            scope["state"]["tenant"] = self._check_key(headers.get("authorization", ""))
        if scope["method"] == "POST":
            reserved = self._reserve(headers)
            try:
                scope["state"]["body"] = await self._read(receive)
            finally:
                self._buffered -= reserved

    def _check_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        sizes = [len(name) + len(value) for name, value in headers]
        if len(sizes) > self.settings.max_headers or sum(sizes) > self.settings.max_header_bytes:
            raise ApiError("the request has too many headers, or too long ones", status=431)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:  # a proxy may read it otherwise
            raise ApiError("the request says its length in two ways; send Content-Length or Transfer-Encoding")

    def _check_host(self, host: str) -> None:
        if self.settings.is_loopback and _without_port(host) not in self._hosts:
            raise ApiError(
                "this server answers to localhost only; start it with --allowed-hosts to give it another name",
                status=421,
            )

    def _check_origin(self, headers: Headers) -> None:
        origin, allowed = headers.get("origin"), self.settings.allowed_origins
        if origin is None or "*" in allowed or origin in allowed:
            return
        if _host_of(origin) != headers.get("host"):
            raise ApiError("web pages of this origin may not use this server (--allowed-origins)", status=403)

    def _check_key(self, authorization: str) -> str:
        """Return a salt of the key's owner; "" where all share one key."""
        if not self._keys:
            return ""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        # Every key is compared, so the time says neither which nor how nearly.
        matching = [known for known in self._keys if hmac.compare_digest(known, given)]
        if scheme.lower() != "bearer" or not matching:
            raise ApiError("give a valid API key: Authorization: Bearer KEY", status=401, code="invalid_api_key")
        return matching[0].hex() if len(self._keys) > 1 else ""

    def _reserve(self, headers: Headers) -> int:
        """Check what the headers say of the body, and return how many bytes are set aside for it."""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError("the body must be JSON, sent with Content-Type: application/json", status=415)
        if (coding := headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
            raise ApiError(
                f"the body is compressed ({coding[:40]}), and nothing is unpacked here; send it as it is, without "
                "Content-Encoding",
                status=415,
            )
        most = self.settings.max_body_bytes
        said = headers.get("content-length")
        if said is not None and int(said) > most:  # h11 has checked that it is a number
            raise ApiError(f"the body is larger than {most} bytes", status=413)
        size = int(said) if said is not None else most
        if self._buffered + size > _BUFFERED_BODIES * most:
            raise ApiError("too many large requests at once", status=503, retry_seconds=1)
        self._buffered += size
        return size

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.read_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError("the client left", status=408)
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.settings.max_body_bytes:
                        raise ApiError(f"the body is larger than {self.settings.max_body_bytes} bytes", status=413)
        except TimeoutError:
            raise ApiError(f"the body took longer than {self.settings.read_seconds:g} seconds", status=408) from None
        return bytes(body)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_of(origin: str) -> str:
    """Return an origin's host and port as they are spelt; "" if it has none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # brackets without an address in them
        return ""


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()
