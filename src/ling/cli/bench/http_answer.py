"""Reading one HTTP/1.1 answer from an asyncio stream."""

import asyncio
from collections.abc import AsyncIterator

from ling.errors import RequestError


class HttpAnswer:
    """One answer, read as it comes.

    timeout  seconds without a byte after which TimeoutError is raised
    """

    def __init__(self, reader: asyncio.StreamReader, timeout: float) -> None:
        self._reader, self._timeout = reader, timeout
        self.status = 0
        self.headers: dict[str, str] = {}

    async def read_head(self) -> None:
        """Read status and headers. Raises RequestError for what is not HTTP."""
        first = (await self._line()).split(maxsplit=2)
        if len(first) < 2 or not first[0].startswith(b"HTTP/1.") or not first[1].isdigit():
            raise RequestError("the answer is not HTTP" if first else "the server hung up without an answer")
        self.status = int(first[1])
        while line := await self._line():
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes: in chunks, of a known length, or until the server hangs up."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := int((await self._line()).partition(b";")[0] or b"-1", 16):
                if size < 0:
                    raise RequestError("the answer broke off")
                async with asyncio.timeout(self._timeout):
                    piece = await self._reader.readexactly(size + 2)
                yield piece[:-2]
            return
        left = int(self.headers.get("content-length") or -1)
        while left:
            async with asyncio.timeout(self._timeout):
                piece = await self._reader.read(2**16 if left < 0 else min(left, 2**16))
            if not piece:
                break
            left -= len(piece) if left > 0 else 0
            yield piece
        if left > 0:
            raise RequestError(f"the answer broke off {left} bytes before its end")

    async def _line(self) -> bytes:
        async with asyncio.timeout(self._timeout):
            return (await self._reader.readline()).rstrip(b"\r\n")


async def lines_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut pieces into lines, each as soon as it is whole."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest
