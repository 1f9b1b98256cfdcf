"""One connection to one origin: a request out, its answer in, one at a time.

Moves bytes and keeps count of them; `answer` reads what they say. Decides nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from cortexd.proxy.answer import BROKEN, MAX_HEAD, Answer, Receiver, UpstreamFault, What, fault_of

_READ: Final = 64 * 1024  # bytes at a time; a plain Protocol on uvloop reads four times as much
_JOINED: Final = 64 * 1024  # bytes of a body up to which copying is cheaper than a second write
_H: Final = ord("H")

# A read is parsed before the loop does anything else: one buffer serves every connection.
_buffer: Final = memoryview(bytearray(_READ))


class Home(Protocol):
    """Where a connection goes between two exchanges."""

    def give(self, connection: Connection) -> None:
        """It is ready for another exchange."""

    def lost(self, connection: Connection) -> None:
        """It was closed while it was idle."""


class Connection(asyncio.BufferedProtocol):
    """`origin`: whom it is connected to. `idle_since`: loop time; for the pool."""

    __slots__ = (
        "_answer",
        "_home",
        "_is_stuck",
        "idle_since",
        "is_open",
        "origin",
        "transport",
        "uses",
    )

    def __init__(self, origin: object, home: Home) -> None:
        self.origin = origin
        self._home = home
        self._answer: Answer | None = None
        self._is_stuck = False  # a part of the request is not written yet
        self.transport: asyncio.Transport
        self.is_open = False
        self.idle_since = 0.0
        self.uses = 0

    def __repr__(self) -> str:
        state = "closed" if not self.is_open else "busy" if self._answer else "idle"
        return f"<Connection {self.origin} {state} uses={self.uses}>"

    def send(self, head: bytes, body: bytes, receiver: Receiver) -> None:
        """Send a request; `receiver` is told of its answer."""
        if not self.is_open:  # since it was made or taken
            receiver.failed(UpstreamFault("unsent", "it closed the connection"))
            return
        self.uses += 1
        self._answer = Answer(receiver)
        if len(body) <= _JOINED:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def pause(self) -> None:
        """Read no more for now; what was read already still comes."""
        if self.is_open:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.is_open:
            self.transport.resume_reading()

    def close(self) -> None:
        """End it at once, so that the upstream stops working; nobody is told any more."""
        self.is_open = False
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.release()
        self.transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)
        # Any part of a request that the kernel did not take at once counts as not written. Not 0:
        # with TLS even an empty buffer would be over that.
        self.transport.set_write_buffer_limits(high=1, low=0)
        self.is_open = True

    def pause_writing(self) -> None:
        """The kernel takes no more for now."""
        self._is_stuck = True

    def resume_writing(self) -> None:
        """Everything is written."""
        self._is_stuck = False

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        return _buffer

    def buffer_updated(self, size: int) -> None:
        """`size` bytes were read."""
        answer = self._answer
        if answer is None:  # nobody asked
            self.close()
            self._home.lost(self)
            return
        if not (answer.has_head or answer.head_size) and _buffer[0] != _H:
            # The parser reads RTSP and ICY, too.
            self._fail(UpstreamFault("invalid", "its answer is not HTTP"))
            return
        had_head = answer.has_head
        try:
            answer.parser.feed_data(_buffer[:size])
        except BROKEN as error:
            if self._answer is answer and not answer.is_complete:
                self._fail(fault_of(error))
            answer.is_reusable = False  # more came than was asked for
        if self._answer is not answer:  # closed while its answer was read
            return
        if had_head:
            answer.left -= size
        elif answer.has_head:
            answer.weigh(bytes(_buffer[:size]))
        if answer.is_complete:
            self._finish(answer, size)
        elif answer.has_head and answer.flush():
            answer.head_size = 0
        else:
            # A head, or what stands between two pieces of the body or after the last one: nothing
            # of these may grow for ever.
            answer.head_size += size
            if answer.head_size > MAX_HEAD:
                self._fail(UpstreamFault("invalid", "its head is too large"))
            elif not answer.has_head:
                answer.edge = (answer.edge + bytes(_buffer[:size]))[-3:]
                answer.receiver.begun()

    def eof_received(self) -> None:
        """The upstream sends no more."""
        self._ended(None, is_clean=True)
        # Else what is not written of the request would wait until it is read, maybe for ever.
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone. Without a word before: with TLS that may be an end that somebody forged."""
        self._ended(exc, is_clean=False)

    def _finish(self, answer: Answer, size: int) -> None:
        self._answer = None
        # The parser swallows line ends between two answers, but a byte too many is one too many.
        if answer.is_chunked:
            has_ended = bytes(_buffer[max(0, size - 6) : size]) != b"\r\n\r\n\r\n"
        else:
            has_ended = answer.left == 0
        if answer.is_reusable and has_ended and not self._is_stuck:
            self._home.give(self)
        else:
            self.close()
        answer.receiver.end()
        answer.release()

    def _ended(self, exc: Exception | None, *, is_clean: bool) -> None:
        was_open, self.is_open = self.is_open, False
        answer, self._answer = self._answer, None
        if answer is None:
            if was_open:
                self._home.lost(self)
            return
        if is_clean and answer.is_until_close:
            answer.receiver.end()
        else:
            is_reused = self.uses > 1
            what: What = "unsent" if is_reused and self._is_stuck else "reset"
            if answer.has_head or answer.head_size:
                what = "invalid"
            words = (exc and exc.args and str(exc.args[-1])) or "it closed the connection"
            answer.receiver.failed(UpstreamFault(what, words, is_reused=is_reused))
        answer.release()

    def _fail(self, fault: UpstreamFault) -> None:
        answer = self._answer
        self.close()
        if answer is not None:
            answer.receiver.failed(fault)
