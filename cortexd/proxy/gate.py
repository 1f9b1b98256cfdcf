"""What may come in: the limits and the hygiene that aiohttp's parser leaves to its user.

Stands between an accepted connection and its parser, and sees every request before anybody else
does. It only looks at heads; after the first one that is refused no byte is parsed any more, so
that nothing hidden behind a bad request is ever taken for another one (RFC 9112, section 11.2).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final, Literal, Protocol

from aiohttp import StreamReader, hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from cortexd import errors
from cortexd.errors import Kind, Refusal

log = logging.getLogger(__name__)

MAX_TARGET: Final = 8 << 10  # bytes
MAX_HEAD: Final = 32 << 10  # bytes, the target included
MAX_FIELDS: Final = 100
_MAX_LENGTH_DIGITS: Final = 18  # of a Content-Length; any more would overflow somebody's int64

_TOO_MANY: Final = "Too many headers received"  # aiohttp's words for it, and the only mark it has

Fault = tuple[Kind, str]
Fed = tuple[Sequence[tuple[RawRequestMessage, StreamReader]], bool, bytes]
_NOTHING: Final[Fed] = ((), False, b"")


class Parser(Protocol):
    """What a connection of aiohttp's asks of its parser."""

    def feed_data(self, data: bytes, /) -> Fed:
        """Take bytes; the requests whose heads they complete. Raises HttpProcessingError."""

    def message_consumed(self) -> None:
        """A request left the queue."""

    def pause_reading(self) -> None:
        """Keep what comes, unparsed."""

    def set_upgraded(self, val: bool, /) -> None:
        """Whether bytes belong to another protocol."""


class Leftover(StreamReader):
    """Stands in for the body of a refused request: carries why it was refused.

    What is left of a body is read before its connection is closed. Here that means: say that the
    answer was the last, then wait until the client has hung up or the patience with it
    ends. Closing with bytes unread would reset the connection, and could destroy the answer
    before the client has read it (RFC 9112, section 9.6).
    """

    __slots__ = ("fault",)

    def __init__(self, protocol: BaseProtocol, loop: asyncio.AbstractEventLoop, fault: Fault):
        super().__init__(protocol, 0, loop=loop)
        self.fault = fault

    async def readany(self) -> bytes:
        """Half-close, then wait to be cancelled."""
        transport = self._protocol.transport
        if transport is not None and not transport.is_closing():
            transport.write_eof()
        await self._loop.create_future()
        return b""


class Gate:
    """Feeds one connection's bytes to its parser. Takes the parser's place in the protocol.

    awaits: what the client still owes: the rest of a "head", of a "body", or nothing.
    since: loop time at which the connection or that head began, or the last byte of that body came.
    began: loop time at which the head of the last request was whole.
    taken: bytes received since then, roughly those of its body.
    break_off: told of a body that broke off its framing, and why; ends the connection.
    """

    __slots__ = (
        "_break_off",
        "_feed",
        "_head",
        "_is_dead",
        "_is_start",
        "_loop",
        "_opening",
        "_payload",
        "_protocol",
        "awaits",
        "began",
        "message_consumed",
        "pause_reading",
        "set_upgraded",
        "since",
        "taken",
    )

    def __init__(
        self,
        parser: Parser,
        protocol: BaseProtocol,
        loop: asyncio.AbstractEventLoop,
        break_off: Callable[[StreamReader, Refusal], None],
    ) -> None:
        self._feed = parser.feed_data
        self.message_consumed = parser.message_consumed
        self.pause_reading = parser.pause_reading
        self.set_upgraded = parser.set_upgraded
        self._protocol = protocol
        self._loop = loop
        self._break_off = break_off
        self._payload: StreamReader | None = None  # of the last request that began
        self._head = 0  # bytes of a head that is not whole yet
        self._is_dead = False
        # Whether the next byte belongs to a request line, or to the empty lines before one.
        self._is_start = True
        self._opening = b""  # the bytes of that line so far
        self.awaits: Literal["head", "body"] | None = None
        self.since = self.began = loop.time()
        self.taken = 0

    def feed_data(self, data: bytes) -> Fed:
        """Parse; what is returned is fit to be served, or carries a Leftover as its body."""
        if self._is_dead:
            return _NOTHING
        if self._is_start and data and (bad := self._open(data)) is not None:
            return self._refuse([], None, bad)
        try:
            fed = self._feed(data)
        except HttpProcessingError as error:
            if self._payload is None or self._payload.is_eof():
                return self._refuse([], None, _verdict(error))
            self._is_dead, self.awaits = True, None
            self._break_off(self._payload, Refusal(errors.BAD_REQUEST, _BROKEN))
            return _NOTHING
        messages = fed[0]
        if not (messages or data):  # aiohttp resumes its parser after a pause
            if self.awaits == "body":  # the pause may have come before the end of the body
                self._await_body(data)
            return fed
        if messages:
            for index, (message, _) in enumerate(messages):
                blob = b"".join(chain.from_iterable(message.raw_headers))
                if (fault := _fault(message, len(blob))) is not None:
                    return self._refuse(fed[0][:index], message, fault)
                if b"_" in blob or not message.path.startswith("/"):
                    fit = list(fed[0])
                    fit[index] = _cleaned(message), fit[index][1]
                    fed = fit, fed[1], fed[2]
            self._head, self._payload = 0, messages[-1][1]
            self.taken = 0
            self._await_body(data)
            self.began = self.since
        elif self.awaits == "body":
            self.taken += len(data)
            self._await_body(data)
        # Empty lines before a request are no head yet (RFC 9112, section 2.2).
        elif self.awaits or data.strip(b"\r\n"):
            return self._await_head(len(data))
        return fed

    def _open(self, data: bytes) -> Fault | None:
        """Check the first line of a request for faults that the parser accepts.

        Empty lines before it are no fault (RFC 9112, section 2.2), bare CR and LF are.
        """
        line = self._opening + data
        if line[0] in b"\r\n":
            rest = line.lstrip(b"\r\n")
            blank = line[: len(line) - len(rest)]
            self._opening = b"\r" if not rest and blank.endswith(b"\r") else b""
            blank = blank[: len(blank) - len(self._opening)]
            if blank != b"\r\n" * (len(blank) // 2):
                return errors.BAD_REQUEST, _NO_HTTP
            if not rest:
                return None
            line = rest
        end = line.find(b"\n")
        if end < 0:
            self._opening = line
            return None
        self._is_start, self._opening = False, b""
        if line[end - 9 : end - 3] != b"HTTP/1" and _OTHER_PROTOCOL.search(line, 0, end):
            return errors.BAD_REQUEST, _NO_HTTP
        return None

    def _await_body(self, data: bytes) -> None:
        if self._payload is None or self._payload.is_eof():
            self.awaits = None
            # Half of another head may follow, unless a head or a last chunk ends the data.
            self._is_start = data[-4:] == b"\r\n\r\n"
        else:
            self.awaits, self.since = "body", self._loop.time()

    def _await_head(self, size: int) -> Fed:
        """Count bytes that complete no head. What came along with an earlier request is not
        counted here; a whole head is weighed again."""
        if self.awaits is None:
            self.awaits, self.since = "head", self._loop.time()
        self._head += size
        return self._refuse([], None, _TOO_LONG) if self._head > MAX_HEAD else _NOTHING

    def _refuse(
        self,
        fit: Sequence[tuple[RawRequestMessage, StreamReader]],
        message: RawRequestMessage | None,
        fault: Fault,
    ) -> Fed:
        """Let those before it be served, then answer this one, then close."""
        log.debug("refused a request: %s", fault[1])
        self._is_dead, self.awaits = True, None
        leftover = Leftover(self._protocol, self._loop, fault)
        return [*fit, (_refused(message), leftover)], False, b""


# Protocols that the parser accepts besides HTTP.
_OTHER_PROTOCOL: Final = re.compile(rb" (RTSP|ICE)/")
_BROKEN: Final = "The body's chunked coding is broken; look at what sends it."
_NO_HTTP: Final = (
    "The request is not valid HTTP/1.1; look at the client, or at the proxy before us."
)
_TOO_LONG: Final[Fault] = (
    errors.HEAD_TOO_LARGE,
    f"The request's head is larger than {MAX_HEAD} bytes; send fewer or shorter headers.",
)


def _verdict(error: HttpProcessingError) -> Fault:
    """The parser's complaint in our words. Its own would echo what the client sent."""
    if isinstance(error, LineTooLong):
        if error.args[1] != MAX_TARGET:  # the two limits differ, so this tells which it was
            return _TOO_LONG
        return (
            errors.URI_TOO_LONG,
            f"The request's target is longer than {MAX_TARGET} bytes; use a shorter one.",
        )
    if error.message == _TOO_MANY:
        return (
            errors.HEAD_TOO_LARGE,
            f"The request has more than {MAX_FIELDS} header fields; send fewer.",
        )
    return errors.BAD_REQUEST, _NO_HTTP


def _fault(message: RawRequestMessage, size: int) -> Fault | None:
    """What is wrong with a head that the parser takes. size: bytes of its names and values."""
    version, headers = message.version, message.headers
    if version not in (HttpVersion11, HttpVersion10):
        return errors.BAD_REQUEST, "Only HTTP/1.1 and HTTP/1.0 are spoken here; use one of them."
    if message.method in {"CONNECT", "TRACE"}:
        return errors.BAD_REQUEST, "This is no proxy: CONNECT and TRACE are refused; use another."
    if not message.path:  # None, after HTTP/0.9 and CONNECT without a target
        return errors.BAD_REQUEST, _NO_HTTP
    if len(message.path) + size + 4 * len(message.raw_headers) > MAX_HEAD:
        return _TOO_LONG
    coding = headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None:
        if coding.lower() != "chunked":
            return errors.BAD_REQUEST, "The only Transfer-Encoding taken is `chunked`; use that."
        if version != HttpVersion11:
            return errors.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding; send a Content-Length."
    if len(headers.get(hdrs.CONTENT_LENGTH, "")) > _MAX_LENGTH_DIGITS:
        return errors.BAD_REQUEST, "The Content-Length is absurd; send the body's real length."
    return None


def _cleaned(message: RawRequestMessage) -> RawRequestMessage:
    """Without what we can't trust: names with `_`, which some servers take for `-` (and which
    could so be spoofed past a proxy that filters the other spelling), and the authority of an
    absolute target."""
    path, url = message.path, message.url
    if url.absolute:
        url = URL.build(path=url.raw_path or "/", query_string=url.raw_query_string, encoded=True)
        path = str(url)
    raw = tuple((name, value) for name, value in message.raw_headers if b"_" not in name)
    headers = CIMultiDict(item for item in message.headers.items() if "_" not in item[0])
    return _remade(
        message,
        path=path,
        headers=CIMultiDictProxy(headers),
        raw_headers=raw,
        url=url,
    )


def _refused(message: RawRequestMessage | None) -> RawRequestMessage:
    """Something that can be answered, as HTTP/1.1 and for the last time."""
    if message is None or not message.path or message.url.absolute:
        empty: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        return RawRequestMessage(
            "GET", "/", HttpVersion11, empty, (), True, None, False, False, URL("/")
        )
    return _remade(message, version=HttpVersion11, should_close=True)


def _remade(message: RawRequestMessage, **changed: Any) -> RawRequestMessage:
    fields = (
        "method",
        "path",
        "version",
        "headers",
        "raw_headers",
        "should_close",
        "compression",
        "upgrade",
        "chunked",
        "url",
    )
    return RawRequestMessage(*(changed.get(name, getattr(message, name)) for name in fields))
