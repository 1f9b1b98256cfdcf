"""One HTTP exchange: the client's request to an upstream, its answer back, byte for byte.

Nothing here decides where a request goes or whether it is tried again: a fault before the first
byte of an answer is raised as `UpstreamFault`, and the caller chooses. After that nothing is
raised any more but the client's own leaving (CancelledError): the stream ends in the caller's
dialect or the connection is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from aiohttp import web

from cortexd.daemon.resolver import Resolver
from cortexd.proxy.answer import Head, UpstreamFault
from cortexd.proxy.call import Call, Carried, InProgress
from cortexd.proxy.connection import Connection
from cortexd.proxy.headers import client_lines, request_head
from cortexd.proxy.pool import Pool, never_own, parse_base
from cortexd.proxy.splice import Opening, Splice
from cortexd.proxy.sweeper import Sweeper
from cortexd.wire import usage

_FIRST_ERROR: Final = 400  # the lowest status of an error
_WORDS: Final = 16 * 1024  # bytes of an answer that has no place, for what it says


class Exchange:
    """Carries exchanges over a pool of upstream connections. `is_own`: see Pool."""

    def __init__(
        self,
        resolver: Resolver,
        is_own: Callable[[str, int], bool] | None = None,
    ) -> None:
        # Once: to ask for the running loop costs a system call before Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._sweeper = Sweeper()
        self._pool = Pool(resolver, self._sweeper, is_own or never_own)

    async def close(self) -> None:
        """Close what is idle, and look at no deadline any more."""
        self._pool.close()
        self._sweeper.close()
        await asyncio.sleep(0)  # a transport is closed in the next turn of the loop

    def interrupt(self, words: str) -> None:
        """End every exchange that is under way: streams with their last words."""
        for flight in self.in_progress():
            flight.interrupt(UpstreamFault("stopped", words))

    def in_progress(self) -> Iterator[InProgress]:
        """Return every exchange whose request was sent and whose answer has not ended."""
        return (flight for flight in self._sweeper.watched if isinstance(flight, _Flight))

    async def carry(self, splice: Splice, request: web.BaseRequest, call: Call) -> Carried:
        """Send `call` and pass its answer to the client.

        Raises UpstreamFault while nothing of the answer was passed on.
        """
        origin, path = parse_base(call.base)
        if call.trusted is not None and origin.is_tls:
            origin = origin._replace(trusted=call.trusted)
        connection = None if call.is_fresh else self._pool.take(origin)
        if connection is None:
            connection = await self._pool.connect(origin, call.connect_timeout)
        head = request_head(
            request.method,
            path + call.target,
            origin.netloc,
            len(call.body),
            request.raw_headers,
            call.lines,
            is_mistyped=call.is_mistyped,
        )
        flight = _Flight(self._loop, splice, connection, call)
        self._sweeper.watch(flight)
        try:
            connection.send(head, call.body, flight)
            await flight.landed
        finally:
            self._sweeper.forget(flight)
            flight.detach()
        return flight.carried()


class _Rejection:
    """Collects the body of an answer that can't be part of the open stream, up to a limit."""

    def __init__(self, fault: UpstreamFault, on_full: Callable[[UpstreamFault], None]) -> None:
        self._fault = fault
        self._on_full = on_full

    def feed(self, data: bytes) -> bytes:
        """Keep `data`; return nothing, so that nothing is passed on."""
        if len(self._fault.content) <= _WORDS:
            self._fault.content += data
            if len(self._fault.content) > _WORDS:
                self._on_full(self._fault)
        return b""

    def rest(self) -> bytes:
        """Return nothing."""
        return b""


class _Flight:
    """One exchange under way: between the upstream's connection and the client's splice."""

    _fault: UpstreamFault | None = None
    _has_fed = False  # something of the body to `_pass_on`
    _has_head = False  # of an answer that is passed on as it comes
    _has_started = False  # the answer, with its own head
    _is_passed_on = False  # something of an answer that broke off
    _rejection: UpstreamFault | None = None
    _opening: Opening | None = None  # the splice's, while a rejection stands in its place
    _held: Head | None = None  # of an answer that is read whole first
    _held_size = 0
    _send: Callable[[], bool]  # what `flush` is for an answer that is not held

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        splice: Splice,
        connection: Connection,
        call: Call,
    ) -> None:
        self._splice = splice
        self._connection: Connection | None = connection
        self._call = call
        self._loop = loop
        self.sent = self._since = self._loop.time()
        self._limit = call.first_byte_timeout
        # Calls of ours for each piece only where there is something to look at.
        self.body, self.flush = splice.write, splice.flush
        if call.remover is not None:
            self.body, self.flush = self._pass_on, self._flush_rest
        self.landed: asyncio.Future[None] = self._loop.create_future()
        splice.was_moved = False
        splice.source = self
        if splice.is_paused:  # still, by the answer before this one
            connection.pause()

    @property
    def target_key(self) -> object:
        """As given in `Call`."""
        return self._call.target_key

    @property
    def is_unanswered(self) -> bool:
        """Return whether no byte of the answer's body has arrived."""
        return self._splice.first_at is None and not self._splice.was_moved

    @property
    def quiet_since(self) -> float:
        """When the upstream last sent anything, loop time."""
        splice = self._splice
        return self._loop.time() if splice.was_moved or splice.is_paused else self._since

    # What the upstream's connection calls.

    def begun(self) -> None:
        """Who has begun to answer goes on soon."""
        self._since, self._limit = self._loop.time(), self._call.idle_timeout

    def head(self, head: Head) -> None:
        """Pass the head on, unless it is not wanted."""
        call, splice = self._call, self._splice
        is_error = head.status >= _FIRST_ERROR
        if is_error and call.policy.declines(head.status):
            raise UpstreamFault("declined", f"it answered {head.status}")
        if splice.is_open and (head.status != 200 or not head.is_event_stream):
            # The gateway has begun an event stream: no other answer fits in, but its words may.
            what = f"it answered {head.status}"
            if head.status == 200:
                what = "its answer is no event stream"
            self._reject(head.status, what)
            return
        # Some engines send their head before they have read the prompt.
        self._since = self._loop.time()
        self._limit = call.first_byte_timeout or call.idle_timeout
        if (
            is_error
            and call.policy.inspects(head.status)
            and not head.is_event_stream
            and (head.length or 0) <= _WORDS
        ):
            self._held, self._send, self.flush = head, self.flush, self._flush_held
            return
        self._start(head)

    def _start(self, head: Head) -> None:
        call, splice = self._call, self._splice
        self._has_head = True
        if splice.is_open:
            return
        self._has_started = True
        lines = client_lines(head.fields, call.answer_lines, is_event_stream=head.is_event_stream)
        splice.start(
            head.status,
            head.reason,
            lines if call.revise is None else call.revise(lines),
            # An event may have to be added: a length would leave no room for it.
            None if head.is_event_stream else head.length,
            is_sse=head.is_event_stream,
        )

    def end(self) -> None:
        """The answer is whole."""
        # First: what is written here may stall the client, but the connection is in the pool.
        self._connection = self._splice.source = None
        if self._rejection is not None:
            self._refuse(self._rejection)
            return
        if self._held is not None and not self._let_go(self._held):
            return
        if self._call.remover is not None and (rest := self._call.remover.rest()):
            self._splice.write(rest)
        self._splice.end()
        self._land()

    def failed(self, fault: UpstreamFault) -> None:
        """It never will be."""
        self._connection = None
        self._break_off(self._rejection or fault)

    # What ends it otherwise.

    def sweep(self, now: float) -> None:
        """Look at the deadline of this phase."""
        splice = self._splice
        if self.landed.done():
            return
        if splice.was_moved:
            splice.was_moved = False
            self._since, self._limit = now, self._call.idle_timeout
        elif splice.is_paused:  # it is the client's turn
            self._since = now
        elif self._limit is not None and now - self._since >= self._limit:
            self._drop()
            self._break_off(UpstreamFault("timeout", f"nothing for {self._limit:g} s"))
            return
        silence = self._call.silence
        if silence is not None and splice.first_at is None and self._held is None:
            silence.check(self.sent, now)

    def interrupt(self, fault: UpstreamFault) -> None:
        """End it here, whatever its upstream still has to say."""
        if not self.landed.done():
            self._drop()
            self._break_off(fault)

    # What the client's splice calls.

    def pause(self) -> None:
        """The client takes no more for now."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """It does again."""
        if self._connection is not None:
            self._connection.resume()

    def lost(self) -> None:
        """It is gone, and with it the reason to go on."""
        self._drop()
        self.landed.cancel()

    # What whoever waits for it calls.

    def detach(self) -> None:
        """Let go of both sides; an upstream that still works stops."""
        self._drop()
        self._splice.source = None

    def carried(self) -> Carried:
        """The outcome. Raises UpstreamFault when nothing was passed on."""
        splice, fault, remover = self._splice, self._fault, self._call.remover
        if fault is not None and not self._is_passed_on:
            raise fault
        tail = splice.tail if remover is None else splice.tail + remover.taken
        found = usage.from_stream if splice.is_event_stream else usage.from_body
        return Carried(
            splice.status,
            splice.first_at,
            found(tail, splice.first),
            fault is not None,
            splice.token_at,
        )

    def _pass_on(self, data: bytes) -> None:
        """A piece of the body, where it is not simply the client's."""
        splice, remover = self._splice, self._call.remover
        self._has_fed = splice.was_moved = True  # even if all of it is held back
        if remover is None or not splice.is_event_stream or self._rejection is not None:
            splice.write(data)
        else:
            splice.write(remover.feed(data))

    def _flush_held(self) -> bool:
        """Hold a short answer back until it is whole; pass on one that grows too long."""
        splice = self._splice
        if (held := self._held) is None:
            return self._send()
        self._has_fed = False
        before, self._held_size = self._held_size, splice.unsent
        if self._held_size > _WORDS:
            self._held = None
            content = splice.withdraw()
            self._start(held)
            splice.write(content)
            return self._send()
        return self._held_size > before

    def _let_go(self, head: Head) -> bool:
        """Pass on an answer that was read whole. Return False if `judge` made a fault of it."""
        self._held = None
        content = self._splice.withdraw()
        what = self._call.policy.judge(head.status, content)
        if what is not None:
            fault = UpstreamFault(what, f"it answered {head.status}")
            fault.status, fault.content = head.status, content
            self._break_off(fault)
            return False
        if self._call.revise is not None:
            content = self._call.revise(content)
            head = head._replace(length=None if head.length is None else len(content))
        self._start(head)
        self._splice.write(content)
        return True

    def _refuse(self, fault: UpstreamFault) -> None:
        """End with an answer that can't be part of the open stream."""
        policy = self._call.policy
        if policy.inspects(fault.status):
            fault.what = policy.judge(fault.status, fault.content) or fault.what
        self._break_off(fault)

    def _flush_rest(self) -> bool:
        """What is held back is body, too."""
        has_fed, self._has_fed = self._has_fed, False
        return self._splice.flush() or has_fed

    def _reject(self, status: int, what: str) -> None:
        """Collect the answer's body for the fault: it can't be part of the open stream."""
        fault = self._rejection = UpstreamFault("answered", what)
        fault.status = status
        self._opening, self._splice.opening = self._splice.opening, _Rejection(fault, self._full)

    def _full(self, fault: UpstreamFault) -> None:
        self._drop()
        self._break_off(fault)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _break_off(self, fault: UpstreamFault) -> None:
        fault.after = self._loop.time() - self.sent
        self._fault = fault
        splice = self._splice
        if self._rejection is not None:
            splice.opening = self._opening
        if self._held is not None:
            self._held = None
            splice.withdraw()
        elif self._has_started:
            self._is_passed_on = not splice.take_back()
        else:  # into a stream that the gateway has opened
            self._is_passed_on = splice.first_at is not None
        fault.is_taken_back = self._has_head and not self._is_passed_on
        if splice.opening is not None:
            splice.opening.rest()  # nothing of this answer may come before another
        if self._is_passed_on:
            words = self._call.policy.last_words(fault) if splice.is_event_stream else b""
            # Where there is neither a word nor a missing chunk, only a reset tells.
            if words or (splice.is_event_stream and splice.is_chunked):
                splice.say(words)
                if words and self._call.policy.ends_properly():
                    splice.end()
                else:
                    splice.cut()
            else:
                splice.abort()
        self._land()

    def _land(self) -> None:
        if not self.landed.done():
            self.landed.set_result(None)
