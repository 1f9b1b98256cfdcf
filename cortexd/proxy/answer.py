"""Reading one answer of an upstream: what the HTTP parser calls, checked, and told on.

The only module that knows the parser. It checks that what comes is an answer (the upstream may be
hostile, too), tells its receiver what came, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Final, Literal, NamedTuple, Protocol

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpResponseParser,
)

from cortexd.proxy.headers import Fields

MAX_HEAD: Final = 64 * 1024  # bytes; httptools has no limit, and feeding it an endless head is slow
MAX_INFORMATIONAL: Final = 8  # 1xx heads before the real one
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_FRAMING: Final = frozenset({b"content-length", b"content-type", b"transfer-encoding"})
_BODILESS: Final = frozenset({204, 304})  # RFC 9110, section 6.4.1
BROKEN: Final = (HttpParserError, HttpParserUpgrade)  # what the parser raises; see `fault_of`


class Head(NamedTuple):
    """The head of an answer. `length`: of its body; None when only its end tells."""

    status: int
    reason: bytes
    fields: Fields
    length: int | None
    is_event_stream: bool


What = Literal[
    "refused",
    "unreachable",
    "own",
    "unsent",
    "reset",
    "invalid",
    "declined",
    "unauthorized",
    "model_missing",
    "context_overflow",
    "answered",
    "timeout",
    "dead",
    "stopped",
]


class UpstreamFault(Exception):
    """No answer, or only a part of one.

    what: `refused`, no connection was made; `unreachable`, not in time; `own`, none was tried: it
        would lead back to this process; `unsent`, one from the
        pool was closed before the request was written: the upstream has not seen the request.
        `reset`, the connection ended before a byte of an answer; `invalid`, what came is no whole
        HTTP answer; `declined`, the answer was not wanted; `unauthorized`, it rejected our
        credentials (the client's are not sent); `model_missing`, it answered that it does not have
        the model; `context_overflow`, that the prompt is too long for it;
        `answered`, but with something that has no place in the stream that is open already;
        `timeout`, it did not come; `dead`, its node does not respond any more; `stopped`, it was
        we who ended it.
    is_reused: the connection had carried another exchange before.
    is_taken_back: the head of its answer had come, and nothing of it was sent to the client.
    after: seconds since the request was sent. status, content: of an answer that has no place.
    """

    def __init__(self, what: What, detail: str, *, is_reused: bool = False) -> None:
        super().__init__(detail)
        self.what: What = what
        self.is_reused = is_reused
        self.is_taken_back = False
        self.after = 0.0
        self.status = 0
        self.content = b""


class Receiver(Protocol):
    """Who is told what came. Nothing more comes after `end` or `failed`."""

    @property
    def body(self) -> Callable[[bytes], None]:
        """Called with each piece of the body, as it comes."""

    @property
    def flush(self) -> Callable[[], bool]:
        """Called after each read, when its parts have been delivered. Return whether any was body.

        Looked up again after `head`.
        """

    def begun(self) -> None:
        """A part of the head is there."""

    def head(self, head: Head) -> None:
        """The head is there. Raises UpstreamFault to stop here; `failed` is then called."""

    def end(self) -> None:
        """The answer is whole."""

    def failed(self, fault: UpstreamFault) -> None:
        """The answer will never be whole."""


class Answer:
    """What the parser calls while it reads one answer; a parser each, so that none inherits state.

    edge: the last bytes of a head that is not whole.
    head_size: bytes read since the last that were of the body.
    is_until_close: its body ends with the connection. left: bytes of a body with a length to come.
    is_reusable: another request may follow on the connection.
    """

    edge = b""
    has_head = is_chunked = is_complete = is_reusable = is_until_close = False
    head_size = left = 0
    _informational = 0
    _reason = b""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        # Looked up once, here and by the parser: no call of ours in between.
        self.on_body, self.flush = receiver.body, receiver.flush
        self._fields: list[tuple[bytes, bytes]] = []
        self.parser = HttpResponseParser(self)

    def release(self) -> None:
        """Parser and answer hold each other: let go, so that nothing waits for the collector."""
        del self.parser

    def weigh(self, read: bytes) -> None:
        """Take what a read that ended the head brought of the body from what is left of it."""
        text = self.edge + read
        end = text.find(b"\r\n\r\n")
        if end < 0 or self._informational:  # it is not known where the body began
            self.is_reusable, self.left = False, -1
        else:
            self.left -= len(text) - end - 4

    def on_status(self, status: bytes) -> None:
        """A part of the reason phrase."""
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field; those after the body (trailers) are dropped."""
        if not self.has_head:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Check what the parser does not, and tell."""
        if self.is_complete:
            raise UpstreamFault("invalid", "it sent more than was asked for")
        status = self.parser.get_status_code()
        version = self.parser.get_http_version()
        if version not in _VERSIONS or not 100 <= status <= 599:
            raise UpstreamFault("invalid", "it does not speak HTTP/1.1")
        # What comes in one read is no larger than that.
        if self.head_size and len(self._reason) + sum(map(len, chain(*self._fields))) > MAX_HEAD:
            raise UpstreamFault("invalid", "its head is too large")
        if status < 200:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL or status == 101:
                raise UpstreamFault("invalid", "it never comes to an answer")
            self._fields, self._reason = [], b""
            return
        length, is_chunked, is_event_stream = _framing(self._fields)
        if is_chunked:
            if version == "1.0":
                raise UpstreamFault("invalid", "it sends chunks with HTTP/1.0")
            # Legal before an extension: RFC 9112, section 7.1.1.
            self.parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
        if status in _BODILESS:
            length, is_event_stream = 0, False
        self.is_until_close = length is None and not is_chunked
        self.is_chunked, self.left = is_chunked, length or 0
        self.has_head = True
        self.receiver.head(Head(status, self._reason, self._fields, length, is_event_stream))
        self.flush = self.receiver.flush  # the receiver may hold this body back

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was only an informational one."""
        if self.has_head:
            self.is_complete = True
            # Right only in here: the parser forgets as soon as it goes on.
            self.is_reusable = self.parser.should_keep_alive()


def _framing(fields: Fields) -> tuple[int | None, bool, bool]:
    """Content-Length, whether it is chunked, whether it is an event stream. RFC 9112, section 6."""
    length: int | None = None
    is_chunked = is_event_stream = False
    for name, value in fields:
        low = name.lower()
        if low not in _FRAMING:
            continue
        match low:
            case b"content-length":
                digits = value.strip(b" \t")
                if not digits.isdigit() or length not in (None, int(digits)):
                    raise UpstreamFault("invalid", "its Content-Length is none")
                length = int(digits)
            case b"transfer-encoding":
                if is_chunked or value.strip().lower() != b"chunked":
                    raise UpstreamFault("invalid", "its Transfer-Encoding is not chunked")
                is_chunked = True
            case b"content-type":
                is_event_stream = value[:17].lower() == b"text/event-stream"
    if is_chunked and length is not None:
        raise UpstreamFault("invalid", "it has both Content-Length and Transfer-Encoding")
    return length, is_chunked, is_event_stream


def fault_of(error: Exception) -> UpstreamFault:
    """What the parser's complaint means."""
    if isinstance(error, HttpParserCallbackError) and isinstance(error.__context__, UpstreamFault):
        return error.__context__
    return UpstreamFault("invalid", f"its answer is not HTTP ({error})")
