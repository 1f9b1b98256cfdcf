"""Keep-alive events for streaming callers, from the request until the first byte of the answer.

While a model loads: every `[loading] keepalive`. While a loaded one reads a prompt: every
`[upstream] keepalive`. Before the first event nothing is sent, so that a status that is known by
then is the answer's own; with the first event the gateway opens the stream.

The events are comments, without a blank line after them (see `wire.chunks`), and `ping` for
Anthropic, whose clients skip it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from cortexd.config.current import Current
from cortexd.control.entry import Entry
from cortexd.errors import Refusal
from cortexd.gateway.cors import allowance_lines
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.refusals import own_lines
from cortexd.gateway.stream_errors import refusal_event, rejection_event
from cortexd.proxy.headers import UNBUFFERED, lines
from cortexd.proxy.splice import Splice
from cortexd.wire import chunks, responses, sse

_PING: Final = sse.event("ping", b'{"type": "ping"}')
# Before the first comment of a Responses stream: the default event type, which the name of the
# first event replaces. A client that looks at the first characters of a block finds an event's.
_DEFAULT_TYPE: Final = b"event: message\n"
# Paths whose clients accept an event before the answer.
PATHS: Final = chunks.PATHS | {"/v1/messages", responses.PATH}


def can_wait(inbound: Inbound) -> bool:
    """Return whether this caller accepts keep-alive events."""
    return inbound.is_stream and inbound.path in PATHS


class KeepAlive:
    """The keep-alive events of one stream. Most streams need none: it costs little to have one."""

    _is_commented = _waits = False
    _load: Entry | None = None
    _lazy_node: str | None = None
    _timer: asyncio.TimerHandle | None = None
    _last = 0.0  # loop time at which one was sent while the engine read the prompt

    def __init__(self, inbound: Inbound, splice: Splice, current: Current) -> None:
        self._inbound = inbound
        self._splice = splice
        self._current = current

    def waits_for(self, load: Entry | None) -> None:
        """The request waits for this load; None: for its turn after one."""
        self._waits, self._load = True, load
        self._begin()

    def goes_on(self) -> None:
        """It waits no more."""
        self._waits, self._load = False, None

    def waits_at(self, node: str | None) -> None:
        """The request waits at a node that wakes the model up by itself; None: at none."""
        self._lazy_node = node
        if node is not None:
            self._begin()

    def stop(self) -> None:
        """Say no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self, since: float, now: float) -> None:
        """Send an event if the engine has been silent for long enough. See `proxy.call.Silence`."""
        every = self._current.config.upstream.keepalive
        if self._timer is None and every and now - max(since, self._last) >= every:
            self._last = now
            self._send()

    def fail(self, refusal: Refusal) -> None:
        """End a stream that was opened here; nobody may take it for a whole answer."""
        self._end(refusal_event(refusal, self._inbound, self._splice))

    def reject(self, status: int, content: bytes) -> None:
        """End the stream with the engine's refusal of the request: a 4xx and its answer's body."""
        self._end(rejection_event(status, content, self._inbound, self._splice))

    def _end(self, event: bytes) -> None:
        self._splice.opening = None  # including the bytes it holds of an answer that broke off
        self._splice.say(event)
        self._splice.end()

    def _begin(self) -> None:
        if self._timer is None and self._splice.first_at is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._current.config.loading.keepalive, self._beat)

    def _beat(self) -> None:
        self._timer = None
        if (self._waits or self._lazy_node is not None or self._splice.is_open) and self._send():
            self._begin()

    def _send(self) -> bool:
        """Send an event. Return whether another one may follow."""
        splice = self._splice
        if splice.first_at is not None or splice.is_gone:
            return False
        if not splice.is_open:
            splice.start(200, b"OK", self._head(), None, is_sse=True)
        elif not splice.is_event_stream:  # the engine's own head is out, and it is no stream
            return False
        splice.say(self._event())
        return True

    def _head(self) -> bytes:
        inbound, gateway = self._inbound, self._current.config.gateway
        said = {"Content-Type": "text/event-stream"} | UNBUFFERED
        if gateway.expose_route:
            kind = self._route()
            said |= {
                "x-cortex-model": inbound.model or "",
                "x-cortex-cold-start": "false" if kind == "loaded" else "true",
                "x-cortex-route": kind,
            }
        marks = allowance_lines(inbound.request, gateway.cors_origins)
        return own_lines(inbound.dialect, inbound.request_id) + lines(said) + marks

    def _route(self) -> str:
        if self._waits:
            return "cold"
        route = self._inbound.route
        return "lazy" if self._lazy_node is not None or route is None else route.route

    def _event(self) -> bytes:
        inbound = self._inbound
        if inbound.dialect == "anthropic":
            return _PING
        comment = b": %b\n" % self._progress().encode("ascii", "backslashreplace")
        if self._is_commented:
            return comment
        self._is_commented = True
        if inbound.path == responses.PATH:
            return _DEFAULT_TYPE + comment
        path, model, now = inbound.path, inbound.model or "", int(time.time())
        empty = chunks.empty_chunk(path, inbound.request_id, model, now)
        self._splice.opening = chunks.FirstChunk(path, empty)
        return comment

    def _progress(self) -> str:
        load, route = self._load, self._inbound.route
        # Else the load has ended: the model answers as many requests as it can, or reads a prompt.
        is_loading = self._lazy_node is not None or (
            self._waits and load is not None and not load.has_ended
        )
        said = f"cortexd {'loading' if is_loading else 'waiting for'} {self._inbound.model}"
        node = self._lazy_node if load is None else load.node
        if node is None and not self._waits and route is not None:
            node = route.node
        if self._current.config.gateway.expose_route and node:
            said += f" on {node}"
        if load is not None and load.fraction is not None and is_loading:
            said += f" {load.fraction:.0%}"
        return "".join(char if char.isprintable() else "?" for char in said)
