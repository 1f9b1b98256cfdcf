"""Request bodies, read whole: each within `max_body`, all of them together within `max_buffered`.

A body is kept until its request has ended, since a retry may send it again. It is charged with the
bytes that have arrived, not with the declared length, which costs its sender nothing.
Compressed bodies are decoded, and charged with the output. Nothing here reads the content.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

from aiohttp import hdrs, web

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.proxy.encodings import (
    ACCEPTED,
    FEED,
    FIRST,
    PIECE,
    EncodingError,
    decoded,
    is_loaded,
    known_encoding,
)


class Bodies:
    """Every body of one server. `held`: bytes, at present.

    max_body, max_buffered: bytes. table: the configuration table that sets them, like "[gateway]";
        "": neither can be set.
    decodes: whether compressed bodies are accepted.

        hold = bodies.hold()
        try:
            body = await hold.read(request)
        finally:
            hold.release()
    """

    def __init__(
        self,
        max_body: int,
        max_buffered: int,
        *,
        table: str = "[gateway]",
        decodes: bool = True,
    ) -> None:
        self.max_body = max_body
        self.max_buffered = max_buffered
        self.table = table
        self.decodes = decodes
        self.held = 0

    def hold(self) -> Hold:
        """Return the reservation for one request's body, to be ended by `release`."""
        return Hold(self)


class Hold:
    """The bytes that one request holds."""

    __slots__ = ("_bodies", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def release(self) -> None:
        """Return the bytes; a second call does nothing."""
        self._bodies.held -= self._size
        self._size = 0

    def take(self, request: web.BaseRequest) -> bytes | None:
        """Return a plain body that came with its head, as most do; None: it has to be `read`.

        Raises Refusal, as `read` does.
        """
        content = request.content
        if hdrs.CONTENT_ENCODING in request.headers or not content.is_eof():
            return None
        self._grow(content.total_bytes)
        return content.read_nowait()

    async def read(self, request: web.BaseRequest) -> bytes:
        """Return the whole body, decoded.

        A declared length that has no room is refused before anything is read.
        Raises Refusal: too large, in an unknown encoding or not in the one that it declares, or no
        room for it now.
        """
        if (body := self.take(request)) is not None:
            return body
        field = request.headers.get(hdrs.CONTENT_ENCODING)
        if field is None or field.lower() == "identity":
            return await self._read(request)
        encoding = known_encoding(field) if self._bodies.decodes else None
        if encoding is None:
            text = f"The body's Content-Encoding {field[:32]!r} is not supported; send it plain"
            text += f", or with one of {ACCEPTED}." if self._bodies.decodes else "."
            raise Refusal(errors.UNSUPPORTED_ENCODING, text)
        body = await self._read(request)
        return await self._decode(encoding, body) if body else body

    async def _read(self, request: web.BaseRequest) -> bytes:
        headers, content = request.headers, request.content
        if content.is_eof():  # the usual case: it arrived with the head
            self._grow(content.total_bytes)
            return content.read_nowait()
        declared = request.content_length
        if declared is not None:
            self._check(declared)
        if headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= (1, 1):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # nothing of the answer itself has been sent
        body = bytearray()
        while chunk := await content.readany():
            self._grow(len(chunk))
            body += chunk
        return bytes(body)

    async def _decode(self, encoding: str, body: bytes) -> bytes:
        """Decode the first bytes of a small body at once, everything else in a thread."""
        pieces = decoded(encoding, body)
        step = partial(next, pieces, None)
        loop, encoded = asyncio.get_running_loop(), self._size
        found: list[bytes] = []
        self._size = 0  # input and output are bounded separately, and charged together
        try:
            is_quick = len(body) <= FEED and is_loaded(encoding)
            most = FIRST
            while piece := step() if is_quick else await loop.run_in_executor(_threads(), step):
                self._grow(len(piece))
                found.append(piece)
                if len(piece) < most:
                    break
                is_quick, most = False, PIECE
        except EncodingError as error:
            raise Refusal(
                errors.BAD_REQUEST,
                f"The body is not the {encoding} that its Content-Encoding announces: {error}.",
            ) from error
        finally:
            self._bodies.held -= encoded
        return b"".join(found)

    def _grow(self, more: int) -> None:
        bodies = self._bodies
        if self._size + more > bodies.max_body or bodies.held + more > bodies.max_buffered:
            self._check(more)
        self._size += more
        bodies.held += more

    def _check(self, more: int) -> None:
        """Raise Refusal if there is no room for so many more bytes."""
        bodies = self._bodies
        if self._size + more > bodies.max_body:
            remedy = f" or raise {bodies.table} max_body" if bodies.table else ""
            raise Refusal(
                errors.REQUEST_TOO_LARGE,
                f"The request body is larger than {bodies.max_body} bytes; send a smaller one"
                f"{remedy}.",
            )
        if bodies.held + more > bodies.max_buffered:
            limit = f" ({bodies.table} max_buffered)" if bodies.table else ""
            raise Refusal(
                errors.OVERLOADED,
                f"As many request bodies are held here as may be{limit}; try again in a moment.",
            )


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Return threads for decoding only: the loop's own may all be waiting for DNS."""
    return ThreadPoolExecutor(2, thread_name_prefix="decode")
