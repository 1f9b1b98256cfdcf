"""Accepted connections: the client's side of the byte path.

aiohttp's, with what it leaves out: deadlines for slow peers, refusals in the caller's envelope, and
word of back-pressure for whoever writes to the transport itself; and without what it costs to
answer each request in a task of its own.
What may come in is `gate`'s to say; nothing here knows what a request means. What is relied on
inside aiohttp is pinned by a test, so that an upgrade which changes it fails loudly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.http import StreamWriter
from aiohttp.http_parser import RawRequestMessage

from cortexd import errors
from cortexd.errors import Kind, Refusal
from cortexd.proxy.deadlines import KEPT_OPEN, Deadlines, Limits, Overdue
from cortexd.proxy.gate import MAX_FIELDS, MAX_HEAD, MAX_TARGET, Gate, Leftover, Parser
from cortexd.proxy.kernel import has_unread, reset, waited_in_kernel

log = logging.getLogger(__name__)

# Bytes that may wait for a client before its upstream is told to pause, and how few must be left
# before that goes on.
HIGH_WATER: Final = 64 << 10
LOW_WATER: Final = 16 << 10
# Of a body that nobody reads yet, per request; up to 32 requests may queue on one connection.
READ_BUFFER: Final = 32 << 10
HANG_UP: Final = 1.0  # seconds for the client to hang up after an idle connection has ended

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
# (the request, or None when it is a connection that is refused; what it is; words for a person)
Refuse = Callable[[web.BaseRequest | None, Kind, str], web.Response]


class Sink(Protocol):
    """Whoever writes to the client's transport. Each may be called at any time."""

    def pause(self) -> None:
        """The client does not keep up: stop reading from the upstream."""

    def resume(self) -> None:
        """It does again."""

    def lost(self) -> None:
        """It has left; nothing that is written from now on goes anywhere."""


class Sent(web.StreamResponse):
    """What a handler returns when its answer is on the transport already, all of it.

    may_go_on: another request may follow on the connection; else it is closed.
    """

    def __init__(self, *, may_go_on: bool) -> None:
        super().__init__()
        self._may_go_on = may_go_on

    @property
    def keep_alive(self) -> bool:
        """Whether another may follow."""
        return self._may_go_on

    @property
    def prepared(self) -> bool:
        """Nothing may be added to it."""
        return True


_CUT: Final = Sent(may_go_on=False)
# Of a request: it would hold its task, and its task it.
_NO_TASK: Final = cast("asyncio.Task[None]", None)


class Keeper(web.Server):
    """What a door knows of its server.

    refuse: makes the answer to what never reaches the handler.
    max_body: bytes that `request.read()` takes.
    is_leaving: every answer is the last on its connection.
    """

    def __init__(self, handler: Handler, refuse: Refuse, max_body: int) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.refuse = refuse
        self.max_body = max_body
        self.is_leaving = False

    def forget(self, door: Door) -> None:
        """Its connection has ended."""


class Door(web.RequestHandler):
    """One accepted connection.

    sink: called when the client stalls and when it goes on, from when it is set; whether it stalls
        already is `writing_paused`. Its setter removes it when the answer ends.
    serving: the body of the last request that reached the handler.
    lag: seconds for which the first request waited in the kernel until this process read it, the
        wait of its connection to be accepted included; None before it, 0.0 for later requests.
    """

    __slots__ = (
        "_deadlines",
        "_ended_at",
        "_gate",
        "_limits",
        "_server",
        "_wire",
        "lag",
        "serving",
        "sink",
    )

    def __init__(self, server: Keeper, *, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        super().__init__(
            server,
            loop=loop,
            logger=log,
            access_log=None,  # type: ignore[arg-type] # as aiohttp's own runner does
            keepalive_timeout=0,  # it would be a timer each: the sweeper's business
            max_line_size=MAX_TARGET,
            max_field_size=MAX_HEAD,
            max_headers=MAX_FIELDS,
            read_bufsize=READ_BUFFER,
            auto_decompress=False,
        )
        self.sink: Sink | None = None
        self.serving: StreamReader | None = None
        self.lag: float | None = None
        self._server = server
        self._limits = limits
        gate = Gate(cast(Parser, self._parser), self, loop, self._break_off)
        self._gate: Gate | None = gate
        self._parser = gate  # type: ignore[assignment] # aiohttp has no hook for this
        # aiohttp forgets the transport when it closes it; a client that takes nothing more keeps
        # it open for ever.
        self._wire: asyncio.Transport | None = None
        self._deadlines = Deadlines(limits, gate.since)
        self._ended_at = 0.0  # loop time of `end_idle`

    @property
    def is_leaving(self) -> bool:
        """Whether the next answer is the last here."""
        return self._server.is_leaving

    @property
    def is_idle(self) -> bool:
        """Return whether it is open and nothing is asked for here."""
        return not (self._request_in_progress or self._messages or self._wire is None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self._wire = cast(asyncio.Transport, transport)
        self._wire.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        if self._force_close:  # the server was ended between the two
            self._wire.abort()

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

    def resume_reading(self, resume_parser: bool = True) -> None:
        """A body has room again. Told after each read of one, so most times nothing was paused."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def overdue(self, now: float) -> Overdue | None:
        """Return the deadline that the client has missed. Call it regularly."""
        wire, gate = self._wire, self._gate
        if wire is None or gate is None:
            return None
        return self._deadlines.overdue(
            now,
            wire,
            gate,
            asked=self._request_count,
            is_idle=self.is_idle,
            is_serving=self._request_in_progress,
        )

    def sweep(self, now: float) -> None:
        """Cut the connection of a client that is past a deadline."""
        if self._ended_at:
            if now - self._ended_at > min(HANG_UP, self._limits.linger):
                self.force_close()
            return
        overdue = self.overdue(now)
        if overdue is None:
            return
        level = logging.DEBUG if overdue.is_idle else logging.INFO
        log.log(level, "closed the connection from %s: %s", self._peer(), overdue.text)
        if overdue.is_idle:
            self.end_idle()
        elif self.is_idle and not self._deadlines.unsent:  # nobody loses anything
            self.force_close()
        else:
            self.abort()

    def _peer(self) -> str:
        peer = self._wire and self._wire.get_extra_info("peername")
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a socket file"

    def silent_for(self, now: float) -> float:
        """Return for how many seconds the client has not sent bytes, or a request, that it owes."""
        wire, gate = self._wire, self._gate
        if wire is None or gate is None or not wire.is_reading() or has_unread(wire):
            return 0.0
        if gate.awaits == "body" or (gate.awaits and self.is_idle):
            return now - gate.since
        if not self.is_idle or self._deadlines.unsent:
            return 0.0
        return self._deadlines.idle_for(now, self._request_count)

    def make_way(self) -> None:
        """Close it for another connection."""
        if self._gate is not None and self._gate.awaits is not None:
            log.info(
                "closed the connection from %s: it sent nothing, and there are too many",
                self._peer(),
            )
        self.force_close()

    def end_idle(self) -> None:
        """End an idle connection, without resetting a request on its way.

        If the kernel holds a request, it is answered first and this call does nothing. Else the
        client reads the end of the connection and has a moment to close it; what it sends meanwhile
        is read and dropped.
        """
        wire = self._wire
        if self._ended_at or wire is None or wire.is_closing() or has_unread(wire):
            return
        self._close = True  # aiohttp then takes no more requests
        self._ended_at = self._loop.time()
        wire.write_eof()

    def abort(self) -> None:
        """Cut the connection; what was not sent is lost, and the handler is cancelled.

        With a reset: where only the connection's end tells that of an answer, a plain one would
        be a lie.
        """
        if self._wire is None:
            self._force_close = True
        else:
            reset(self._wire)

    def _break_off(self, payload: StreamReader, refusal: Refusal) -> None:
        """A body is broken: whoever reads it gets the refusal, and it is the last answer."""
        if payload is self.serving and not self._request_in_progress:
            self.force_close()  # answered already; only the rest was awaited
            return
        payload.set_exception(refusal)
        payload.feed_eof()
        self.close()

    async def start(self) -> None:
        """Answer one request after the other: what the connection's task does.

        aiohttp's own takes a task for each of them, which costs as much as to parse it.
        """
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                if not await self._serve(*self._messages.popleft()) or self._close:
                    break
        except Exception:
            log.exception("a connection failed")
            self.abort()
        except BaseException:  # cancelled
            self.force_close()
            raise
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve(self, message: Any, payload: StreamReader) -> bool:
        """Answer one; whether the connection may go on after it."""
        gate: Gate = self._gate  # type: ignore[assignment] # a cast would be a call
        gate.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        if self.lag is None:
            self.lag = 0.0 if self._wire is None else waited_in_kernel(self._wire)
        elif self.lag:
            self.lag = 0.0
        request = self._request(message, payload)
        self.serving = payload
        self._request_in_progress = True
        self._current_request = request
        response: web.StreamResponse
        try:
            if isinstance(payload, Leftover):
                response = self._turned_down(request, *payload.fault)
            else:
                try:
                    response = await self._server.request_handler(request)
                except Exception:
                    log.exception("a request handler failed")
                    response = self._in_its_place(request)
            if isinstance(response, Sent):
                # What follows an Upgrade is not parsed before aiohttp's own answer declines it.
                may_go_on = response.keep_alive and not self._upgraded
            else:
                if request.keep_alive and response.keep_alive is not False:
                    _announce(response)
                response, is_lost = await self.finish_response(request, response, None)
                may_go_on = bool(response.keep_alive) and not is_lost
        finally:
            self._request_in_progress = False
            self._current_request = None
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        if not payload.is_eof():
            await self._linger(payload)
        return may_go_on

    def _request(self, message: RawRequestMessage, payload: StreamReader) -> web.BaseRequest:
        writer = StreamWriter(self, self._loop)
        return _Request(
            message,
            payload,
            self,
            writer,
            _NO_TASK,
            self._loop,
            client_max_size=self._server.max_body,
        )

    def _in_its_place(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer of a handler that failed."""
        if request.writer.output_size > 0 or self._wire is None:
            self.abort()  # an error must not land among the bytes of an answer
            return _CUT
        return self._turned_down(
            request, errors.INTERNAL_ERROR, "The request failed; the log has the details."
        )

    async def _linger(self, payload: StreamReader) -> None:
        """Read what is left of a body, else closing would destroy the answer on its way."""
        with suppress(TimeoutError, Refusal):
            async with asyncio.timeout(self._limits.linger):
                while not payload.is_eof():
                    await payload.readany()
        if not payload.is_eof():
            self.close()

    def _turned_down(self, request: web.BaseRequest, kind: Kind, words: str) -> web.Response:
        """The answer to what the handler does not answer: the last one here."""
        response = self._server.refuse(request, kind, words)
        response.force_close()
        return response


def _announce(response: web.StreamResponse) -> None:
    """Add the `Keep-Alive` field."""
    if not response.prepared and "Connection" not in response.headers:
        response.headers.update(KEPT_OPEN)


class _Request(web.BaseRequest):
    """One whose connection ends with its answer when the server leaves, whatever the client wanted;
    it may have been asked before that."""

    @property
    def keep_alive(self) -> bool:
        return not (self._message.should_close or cast(Door, self._protocol).is_leaving)
