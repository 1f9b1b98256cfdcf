"""No dead air: what a streaming caller hears while its model is still being loaded.

For a while it hears nothing, so that a real status can still be told. Then the gateway opens the
stream itself and says in the caller's dialect, at the same interval, that it is still there, until
the answer begins. A slow prompt on a loaded model is the engine's own business.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec

from cortexd.config.current import Current
from cortexd.control.entry import Entry
from cortexd.errors import Refusal
from cortexd.gateway.cors import allowance_lines
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.refusals import last_words, own_lines
from cortexd.proxy.headers import UNBUFFERED, lines
from cortexd.proxy.splice import Splice
from cortexd.wire import openai, sse

# The paths whose clients know what to do with a sign of life.
_COMMENTED: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_PING: Final = sse.event("ping", b'{"type": "ping"}')
PATHS: Final = _COMMENTED | {"/v1/messages", "/v1/responses"}


def can_wait(inbound: Inbound) -> bool:
    """Whether this caller can be told anything before its answer."""
    return inbound.is_stream and inbound.path in PATHS and inbound.request.version >= (1, 1)


class KeepAlive:
    """The signs of life on one stream. Most streams need none: it costs little to have one."""

    _waits = False
    _load: Entry | None = None
    _lazy_node: str | None = None
    _timer: asyncio.TimerHandle | None = None
    _said = 0  # events of ours, which Responses numbers

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

    def fail(self, refusal: Refusal) -> None:
        """End a stream that was opened here; nobody may take it for a whole answer."""
        inbound = self._inbound
        self._splice.say(last_words(refusal, inbound.path, inbound.request_id, number=self._said))
        self._splice.end()

    def _begin(self) -> None:
        if self._timer is None and self._splice.first_at is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._current.config.loading.keepalive, self._beat)

    def _beat(self) -> None:
        self._timer = None
        splice = self._splice
        is_waiting = self._waits or self._lazy_node is not None
        if splice.first_at is not None or splice.is_gone or not (is_waiting or splice.is_open):
            return
        if not splice.is_open:
            splice.start(200, b"OK", self._head(), None, is_sse=True)
        splice.say(self._words())
        self._begin()

    def _head(self) -> bytes:
        inbound, gateway = self._inbound, self._current.config.gateway
        said = {"Content-Type": "text/event-stream"} | UNBUFFERED
        if gateway.expose_route:
            said |= {
                "x-cortex-model": inbound.model or "",
                "x-cortex-cold-start": "true",
                "x-cortex-route": "cold" if self._waits else "lazy",
            }
        marks = allowance_lines(inbound.request, gateway.cors_origins)
        return own_lines(inbound.dialect, inbound.request_id) + lines(said) + marks

    def _words(self) -> bytes:
        if self._inbound.dialect == "anthropic":
            return _PING
        if self._inbound.path in _COMMENTED:
            return b": %b\n\n" % self._progress().encode("ascii", "backslashreplace")
        self._said += 1
        return _response_event(self._inbound, self._said)

    def _progress(self) -> str:
        load = self._load
        # The load has ended, and the model answers as many requests as it can.
        is_queued = self._waits and (load is None or load.has_ended)
        said = f"cortexd {'waiting for' if is_queued else 'loading'} {self._inbound.model}"
        node = self._lazy_node if load is None else load.node
        if self._current.config.gateway.expose_route and node:
            said += f" on {node}"
        if load is not None and load.fraction is not None and not is_queued:
            said += f" {load.fraction:.0%}"
        return "".join(char if char.isprintable() else "?" for char in said)


def _response_event(inbound: Inbound, number: int) -> bytes:
    """`response.created` first, since the SDKs insist on that, then `response.in_progress`."""
    kind = "response.created" if number == 1 else "response.in_progress"
    response = openai.PendingResponse(
        f"resp_{inbound.request_id}", int(time.time()), inbound.model or ""
    )
    event = openai.ResponseProgress(kind, response, number - 1)
    return sse.event(kind, msgspec.json.encode(event))
