"""Request bodies, read whole: each within `max_body`, all of them together within `max_buffered`.

A body is held until its request has ended, since a retry may send it again. It is charged with the
bytes that have come, not with the length that was declared: a declaration costs its sender nothing.
What is said of the bytes is `intake`'s business.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from cortexd import errors
from cortexd.errors import Refusal


class Bodies:
    """Every body of one gateway. `held`: bytes, at present.

    hold = bodies.hold()
    try:
        body = await hold.read(request)
    finally:
        hold.release()
    """

    def __init__(self, max_body: int, max_buffered: int) -> None:
        self.max_body = max_body
        self.max_buffered = max_buffered
        self.held = 0

    def hold(self) -> Hold:
        """Room for one request's body, given back by `release`."""
        return Hold(self)


class Hold:
    """The share of one request."""

    __slots__ = ("_bodies", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        self._bodies.held -= self._size
        self._size = 0

    async def read(self, request: web.BaseRequest) -> bytes:
        """The whole body. A declared length that has no room now is refused before reading.

        Raises Refusal: too large, encoded, or no room for it now.
        """
        headers, content = request.headers, request.content
        encoding = headers.get(hdrs.CONTENT_ENCODING, "identity")
        if encoding.lower() != "identity":
            raise Refusal(
                errors.UNSUPPORTED_ENCODING,
                f"The body's Content-Encoding {encoding[:32]!r} is not supported; send it plain.",
            )
        if content.is_eof():  # as is usual: it came with the head
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

    def _grow(self, more: int) -> None:
        self._check(more)
        self._size += more
        self._bodies.held += more

    def _check(self, more: int) -> None:
        """Raise Refusal if there is no room for so many more bytes."""
        bodies = self._bodies
        if self._size + more > bodies.max_body:
            raise Refusal(
                errors.REQUEST_TOO_LARGE,
                f"The request body is larger than {bodies.max_body} bytes; send a smaller one or "
                "raise [gateway] max_body.",
            )
        if bodies.held + more > bodies.max_buffered:
            raise Refusal(
                errors.OVERLOADED,
                "The gateway holds as many request bodies as it may ([gateway] max_buffered); "
                "try again in a moment.",
            )
