"""Accepted connections and their server: the client's side of the byte path.

aiohttp's server, with what it leaves out: deadlines for slow peers, a cap on connections, refusals
in the caller's envelope, and word of back-pressure for whoever writes to the transport itself.
What may come in is `gate`'s to say; nothing here knows what a request means. What is relied on
inside aiohttp is pinned by a test, so that an upgrade which changes it fails loudly.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage

from cortexd import errors
from cortexd.errors import Kind, Refusal
from cortexd.proxy.gate import MAX_FIELDS, MAX_HEAD, MAX_TARGET, Gate, Leftover, Parser
from cortexd.proxy.sweeper import Sweeper

log = logging.getLogger(__name__)

# Bytes that may wait for a client before its upstream is told to pause, and how few must be left
# before that goes on.
HIGH_WATER: Final = 64 << 10
LOW_WATER: Final = 16 << 10
# Of a body that nobody reads yet, per request; up to 32 requests may queue on one connection.
READ_BUFFER: Final = 32 << 10
SWEEP: Final = 1.0  # seconds between two looks at the deadlines; they are met to within that

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
# (the request, or None when it is a connection that is refused; what it is; words for a person)
Refuse = Callable[[web.BaseRequest | None, Kind, str], web.Response]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a client may take, in seconds.

    head: from the first byte of a head (the first of a connection: from its start) to its last.
    body: between two bytes of a body.
    stall: with bytes waiting for the client, of which it takes none.
    idle: between two requests. Longer than the 60 s that nginx and the balancers of the large
        clouds keep idle connections: the side that sends requests must be the first to hang up,
        or it loses one now and then.
    linger: for the client to hang up after its last answer, or to send what is left of a body.
    """

    head: float = 10.0
    body: float = 30.0
    stall: float = 60.0
    idle: float = 75.0
    linger: float = 5.0


class Sink(Protocol):
    """Whoever writes to the client's transport. Each may be called at any time."""

    def pause(self) -> None:
        """The client does not keep up: stop reading from the upstream."""

    def resume(self) -> None:
        """It does again."""

    def lost(self) -> None:
        """It has left; nothing that is written from now on goes anywhere."""


class Door(web.RequestHandler):
    """One accepted connection.

    sink: told when the client stalls and when it goes on, from when it is set; whether it stalls
        already is `writing_paused`. Whoever sets it takes it away when its answer ends.
    serving: the body of the last request that reached the handler.
    """

    __slots__ = ("_gate", "_limits", "_moved", "_server", "_unsent", "_wire", "serving", "sink")

    def __init__(
        self, server: DoorServer, *, loop: asyncio.AbstractEventLoop, limits: Limits
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            logger=log,
            access_log=None,  # type: ignore[arg-type] # as aiohttp's own runner does
            keepalive_timeout=limits.idle,
            lingering_time=limits.linger,
            max_line_size=MAX_TARGET,
            max_field_size=MAX_HEAD,
            max_headers=MAX_FIELDS,
            read_bufsize=READ_BUFFER,
            auto_decompress=False,
        )
        self.sink: Sink | None = None
        self.serving: StreamReader | None = None
        self._server = server
        self._limits = limits
        self._gate: Gate | None = Gate(cast(Parser, self._parser), self, loop, self._break_off)
        self._parser = self._gate  # type: ignore[assignment] # aiohttp has no hook for this
        # aiohttp forgets the transport when it closes it; a client that takes nothing more keeps
        # it open for ever.
        self._wire: asyncio.Transport | None = None
        self._unsent = 0
        self._moved = 0.0

    @property
    def is_leaving(self) -> bool:
        """Whether the next answer is the last here."""
        return self._server.is_leaving

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked for here."""
        return not (self._request_in_progress or self._messages)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self._wire = cast(asyncio.Transport, transport)
        self._wire.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End; aiohttp cancels the handler."""
        if self.sink is not None:
            self.sink.lost()
        super().connection_lost(exc)
        # All of these lead back here: without them the connection is freed at once.
        self._gate = self._wire = self.sink = self.serving = None
        self._server.forget(self)

    def pause_writing(self) -> None:
        """The client does not keep up."""
        super().pause_writing()
        if self.sink is not None:
            self.sink.pause()

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self.sink is not None:
            self.sink.resume()

    def is_late(self, now: float) -> bool:
        """Whether the client is past a deadline. To be asked regularly: progress is what has
        changed since the last time, so that no byte costs a look at the clock."""
        if self._wire is None or self._gate is None:
            return False
        unsent = self._wire.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._moved = unsent, now
        elif unsent and now - self._moved > self._limits.stall:
            return True
        gate = self._gate
        if gate.awaits is None:
            return False
        if gate.awaits == "head":
            if self._request_in_progress:  # its time begins when it is its turn
                gate.since = now
            return now - gate.since > self._limits.head
        if not self._wire.is_reading():  # it is we who don't want more for now
            gate.since = now
        return now - gate.since > self._limits.body

    def sweep(self, now: float) -> None:
        """Cut the connection of a client that is past a deadline."""
        if self.is_late(now):
            self.abort()

    def abort(self) -> None:
        """Cut the connection; what was not sent is lost, and the handler is cancelled.

        With a reset: where only the connection's end tells that of an answer, a plain one would
        be a lie.
        """
        if self._wire is not None:
            sock = self._wire.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._wire.abort()

    def _break_off(self, payload: StreamReader, refusal: Refusal) -> None:
        """A body is broken: whoever reads it gets the refusal, and it is the last answer."""
        if payload is self.serving and not self._request_in_progress:
            self.force_close()  # answered already; only the rest was awaited
            return
        payload.set_exception(refusal)
        payload.feed_eof()
        self.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer for a handler that failed. Raises ConnectionError when it is too late for that,
        as aiohttp expects: bytes of an answer went out, and an error must not land among them.

        What can't be parsed does not come here: `gate` has turned it away.
        """
        log.error("a request handler failed", exc_info=exc)
        if request.writer.output_size > 0 or self._wire is None:
            self.abort()
            raise ConnectionError("the answer was cut: its handler failed")
        return self.turned_down(
            request, errors.INTERNAL_ERROR, "The request failed; the log has the details."
        )

    def turned_down(self, request: web.BaseRequest, kind: Kind, words: str) -> web.Response:
        """The answer to what the handler does not answer: the last one here."""
        response = self._server.refuse(request, kind, words)
        response.force_close()
        return response


class DoorServer(web.Server):
    """Makes a Door of every connection and hands their requests to `handler`.

    refuse: makes the answer to what never reaches the handler.
    max_body: bytes that `request.read()` takes.
    max_connections: above it a connection is answered 503 `overloaded` and closed.
    """

    def __init__(
        self,
        handler: Handler,
        refuse: Refuse,
        *,
        max_body: int,
        max_connections: int,
        limits: Limits = Limits(),
    ) -> None:
        super().__init__(self._serve, request_factory=self._make_request, handler_cancellation=True)
        self.refuse = refuse
        self._handler = handler
        self._max_body = max_body
        self._max_connections = max_connections
        self._limits = limits
        self.is_leaving = False  # every answer is the last on its connection
        self._doors: set[Door] = set()
        self._were_idle: set[Door] = set()
        self._are_gone = asyncio.Event()
        self._are_gone.set()
        # The only timer there is for deadlines, whatever the number of connections.
        self._sweeper = Sweeper(
            min(SWEEP, *(x / 4 for x in (limits.head, limits.body, limits.stall)))
        )

    @property
    def doors(self) -> frozenset[Door]:
        """The connections that are open."""
        return frozenset(self._doors)

    def __call__(self) -> Any:
        """The protocol of a new connection."""
        if len(self._doors) >= self._max_connections:
            return _TurnedAway(self.refuse)
        door = Door(self, loop=self._loop, limits=self._limits)
        self._doors.add(door)
        self._are_gone.clear()
        self._sweeper.watch(door)
        return door

    def forget(self, door: Door) -> None:
        """A connection has ended."""
        self._sweeper.forget(door)
        self._doors.discard(door)
        if not self._doors:
            self._are_gone.set()

    def leave(self) -> None:
        """From now on every answer says `Connection: close`: clients go before they must."""
        if not self.is_leaving:
            self.is_leaving = True
            self._were_idle = self._idle()

    def hang_up(self) -> None:
        """End the connections on which nothing was asked for, now or the last time: who has just
        heard the end of an answer that did not say so may ask once more."""
        idle = self._idle()
        for door in idle & self._were_idle:
            door.force_close()  # `close` would leave the transport open
        self._were_idle = idle

    def _idle(self) -> set[Door]:
        return {door for door in self._doors if door.is_idle}

    async def wait_gone(self) -> None:
        """Wait until no connection is left."""
        await self._are_gone.wait()

    def abort(self) -> None:
        """Cut every connection that is left."""
        for door in list(self._doors):
            door.abort()

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        cast(Door, protocol).serving = payload
        return _Request(
            message, payload, protocol, writer, task, self._loop, client_max_size=self._max_body
        )

    def _serve(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        door = cast(Door, request.protocol)
        if isinstance(door.serving, Leftover):
            return self._turn_down(door, request, door.serving)
        return self._handler(request)

    async def _turn_down(
        self, door: Door, request: web.BaseRequest, leftover: Leftover
    ) -> web.StreamResponse:
        return door.turned_down(request, *leftover.fault)


class _Request(web.BaseRequest):
    """One whose connection ends with its answer when the server leaves, whatever the client wanted;
    it may have been asked before that."""

    @property
    def keep_alive(self) -> bool:
        return super().keep_alive and not cast(Door, self._protocol).is_leaving


class _TurnedAway(asyncio.Protocol):
    """A connection too many: answered before it asked, and closed, at the least cost."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        response = self._refuse(
            None, errors.OVERLOADED, "Too many connections are open here; try again in a moment."
        )
        wire = cast(asyncio.Transport, transport)
        wire.write(_serialized(response))
        wire.close()


def _serialized(response: web.Response) -> bytes:
    body = cast(bytes, response.body)
    head = [f"HTTP/1.1 {response.status} {response.reason}"]
    head += [f"{name}: {value}" for name, value in response.headers.items()]
    head += [f"Content-Length: {len(body)}", "Connection: close", "\r\n"]
    return "\r\n".join(head).encode() + body
