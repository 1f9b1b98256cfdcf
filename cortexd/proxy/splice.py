"""The client's side of one answer: bytes go straight to its transport.

The only place that writes to a client while an answer streams. What comes from the upstream and
what the gateway says itself (a keep-alive, an error at the end) go out in the order in which they
are written. Knows how to pause its source, not whose it is.
"""

from __future__ import annotations

import asyncio
import re
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final, Protocol

from aiohttp import web

from cortexd.proxy.deadlines import KEPT_OPEN
from cortexd.proxy.door import Door, Sent, Sink
from cortexd.proxy.headers import lines
from cortexd.wire.first_token import OVERLAP

_LARGE: Final = 16 * 1024  # bytes from which a piece of its own costs less than a copy
_SEARCHED: Final = 1024 * 1024  # bytes of a stream that are searched for its first token
_TAIL: Final = 4 * 1024  # bytes of the end of an answer that are kept, twice that at most


# Nothing of one answer stands in them.
_LAST: Final = Sent(may_go_on=False)
_FIRST_OF_MANY: Final = Sent(may_go_on=True)
_KEPT_OPEN: Final = lines(KEPT_OPEN) + b"\r\n"


class Opening(Protocol):
    """A filter for the first bytes of a body, used until it returns some of them."""

    def feed(self, data: bytes) -> bytes:
        """Return the bytes to send; none: more input is needed."""

    def rest(self) -> bytes:
        """Return the bytes that were held back; the body has ended."""


class Splice:
    """One answer on its way to a client.

    was_moved: some of the body was written since this was last set to False (a mark for deadlines).
    is_gone: the client has disconnected; nothing is written any more.
    is_open: the head went out. is_chunked: its end is told by chunks. is_ended: nothing may follow.
    first_at: when the first byte of the body was written, monotonic. first: the body's first bytes,
        once they are not in `tail` any more.
    token: matches the first token of an event stream; None: the answer has no tokens.
    token_at: when the piece with the first token was written, monotonic.
    opening: filters the first bytes of the body; None: nothing does.
    source: told when the client takes no more, when it does again, and when it leaves.
    """

    # What most answers never change stands here, not in each of them.
    is_chunked = is_ended = is_event_stream = is_open = was_moved = False
    first = b""
    first_at: float | None = None
    token: re.Pattern[bytes] | None = None
    token_at: float | None = None
    opening: Opening | None = None
    source: Sink | None = None
    status = 0
    _head = b""
    _kept_size = 0
    _must_abort = False
    _is_early = True  # the first byte, or the first token, is still to come
    _searched = 0  # bytes without a token
    _overlap = b""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        # Annotations, not casts: those are calls, and this is done for each request.
        door: Door = request.protocol  # type: ignore[assignment]
        self._door = door
        self._transport: asyncio.Transport = door.transport  # type: ignore[assignment]
        self._must_close = not request.keep_alive or request.version < (1, 1)
        self._out: list[bytes] = []
        self._kept: list[bytes] = []
        self.is_paused = door.writing_paused  # by the answer before this one
        self.is_gone = door.transport is None
        door.sink = self

    # What the exchange calls.

    def start(
        self, status: int, reason: bytes, lines: bytes, length: int | None, *, is_sse: bool
    ) -> None:
        """The head; it goes out with the next `flush`.

        lines: its fields but for those about length and connection.
        length: of the body; None: its end is told by chunks, or by the connection's.
        """
        self.is_open, self.status, self.is_event_stream = True, status, is_sse
        if self._door.is_leaving:  # since the request came
            self._must_close = True
        head = b"HTTP/1.1 %d %b\r\n%bDate: %b\r\n" % (
            status,
            reason,
            lines,
            _date(int(time.time())),
        )
        end = b"Connection: close\r\n\r\n" if self._must_close else _KEPT_OPEN
        if length is not None:
            if length or status not in (204, 304):
                end = b"Content-Length: %d\r\n%b" % (length, end)
        elif self._request.version >= (1, 1):
            self.is_chunked = True
            end = b"Transfer-Encoding: chunked\r\n" + end
        head += end
        # From here on nobody must answer in our place, whatever goes wrong.
        self._request.writer.output_size = 1
        self._head = head
        self._out.append(head)

    def take_back(self) -> bool:
        """Forget an answer of which nothing was sent yet. Return whether that was so."""
        if not self._out or self._out[0] is not self._head:
            return False
        self._request.writer.output_size = 0
        self._drop_body()
        self._head, self.status = b"", 0
        self.is_chunked = self.is_event_stream = self.is_open = self.was_moved = False
        return True

    def write(self, data: bytes) -> None:
        """A piece of the body; it goes out with the next `flush`."""
        if not data:  # as a chunk it would be the last one
            return
        self.was_moved = True
        if self._is_early:
            if self.opening is not None:
                data = self.opening.feed(data)
                if not data:
                    return
                self.opening = None
            if self.token is None or not self.is_event_stream:
                self._is_early = False
                self.first_at = time.monotonic()  # the loop's own clock counts whole milliseconds
            else:
                self._look_for_token(data, self.token)
        self._kept.append(data)
        self._kept_size += len(data)
        if self._kept_size > 2 * _TAIL:
            self._forget()
        if not self.is_chunked:
            self._out.append(data)
        elif len(data) < _LARGE:
            self._out.append(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")

    def withdraw(self) -> bytes:
        """Take back the body that was written before `start`, none of which was sent."""
        body = b"".join(self._out)
        self._drop_body()
        return body

    def say(self, words: bytes) -> None:
        """Words of the gateway's own, at once; they don't count as any of the body."""
        if words:
            self._out.append(b"%x\r\n%b\r\n" % (len(words), words) if self.is_chunked else words)
        self.flush()

    def flush(self) -> bool:
        """Send what was written, if anything: a system call each time, however much it is."""
        out = self._out
        if not out:
            return False
        self._out = []
        if self.is_gone:
            pass
        elif len(out) == 1:
            self._transport.write(out[0])
        elif self._kept_size < _LARGE:  # one short buffer is sent at less cost than two
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)
        return True

    def end(self) -> None:
        """The answer is whole."""
        if self.opening is not None and (rest := self.opening.rest()):
            self.opening = None
            self.write(rest)
        self.is_ended = True
        if self.is_chunked:
            self._out.append(b"0\r\n\r\n")
        self.flush()

    def cut(self) -> None:
        """The answer is not whole: no end, and the connection is closed after what was written."""
        self.is_ended = self._must_close = True

    def abort(self) -> None:
        """The answer is not whole, and only the connection can tell: it is reset, with the rest."""
        self.is_ended = self._must_abort = True

    def release(self) -> None:
        """Let go of the client's connection: the next request on it has a splice of its own."""
        self._door.sink = None

    def response(self) -> web.StreamResponse:
        """What the handler returns, at once: the server then closes what must be closed."""
        # Not before: the server takes a lost connection for a client that left.
        if self._must_abort and not self.is_gone:
            self._door.abort()
        return _LAST if self._must_close else _FIRST_OF_MANY

    @property
    def unsent(self) -> int:
        """Bytes that were written since the last `flush`."""
        return sum(map(len, self._out))

    @property
    def tail(self) -> bytes:
        """The last bytes of the body, some thousands; all of a short one."""
        return b"".join(self._kept)

    # What the client's connection calls.

    def pause(self) -> None:
        """The client takes no more for now."""
        self.is_paused = True
        if self.source is not None:
            self.source.pause()

    def resume(self) -> None:
        """It does again."""
        self.is_paused = False
        if self.source is not None:
            self.source.resume()

    def lost(self) -> None:
        """It is gone."""
        self.is_gone = True
        if self.source is not None:
            self.source.lost()

    def _look_for_token(self, data: bytes, token: re.Pattern[bytes]) -> None:
        """Note when the first byte and the first token are written."""
        now = time.monotonic()
        if self.first_at is None:
            self.first_at = now
        if token.search(self._overlap + data):
            self.token_at = now
            self._is_early, self._overlap = False, b""
        else:
            self._overlap = (self._overlap + data)[-OVERLAP:]
            self._searched += len(data)
            self._is_early = self._searched < _SEARCHED

    def _drop_body(self) -> None:
        self._out, self._kept, self._kept_size = [], [], 0
        self.first, self.first_at, self.token_at = b"", None, None
        self._is_early, self._searched, self._overlap = True, 0, b""

    def _forget(self) -> None:
        """Keep the end of the body, and the beginning of it once."""
        whole = b"".join(self._kept)
        self.first = self.first or whole[:_TAIL]
        self._kept = [whole[-_TAIL:]]
        self._kept_size = _TAIL


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
