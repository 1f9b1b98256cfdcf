"""Deadlines of an accepted connection: what its client owes, and since when.

Checked by a sweeper about once a second, so that no byte costs a timer. Nothing here closes a
connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from cortexd.proxy.gate import Gate

# Seconds between two checks that count as reading time; after a longer interval, this process
# stood still.
_LONGEST_STEP: Final = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a client may take, in seconds.

    head: from the first byte of a head to its last.
    body: between two bytes of a body.
    body_window: in which `body_rate` times as many bytes of a body must come.
    body_rate: bytes per second that a body must keep up, on average over each window. IIS and
        Kestrel ask for 240; the slowest live audio has a multiple of it.
    body_total: from a body's first byte to its last. 64 MiB take 9 minutes at 1 Mbit/s.
    stall: with bytes waiting for the client, of which it takes none.
    idle: before the first request and between two, as answers announce it; a fifteenth of it more
        passes before the connection ends. Longer than the 60 s that nginx and the balancers of the
        large clouds keep idle connections: the side that sends requests must be the first to hang
        up, or it loses one now and then.
    linger: for the client to hang up after its last answer, or to send what is left of a body.
    """

    head: float = 10.0
    body: float = 30.0
    stall: float = 60.0
    idle: float = 75.0
    linger: float = 5.0
    body_window: float = 60.0
    body_rate: int = 256
    body_total: float = 600.0


DEFAULT_LIMITS: Final = Limits()
_MARGIN: Final = (
    16 / 15
)  # of what is announced: a request that is sent in its last moment has a way
KEPT_OPEN: Final = {"Connection": "keep-alive", "Keep-Alive": f"timeout={DEFAULT_LIMITS.idle:.0f}"}


class Overdue(NamedTuple):
    """A deadline that has passed. text: what the client failed to do, for a log line.

    is_idle: the connection was only idle; no request is lost.
    """

    text: str
    is_idle: bool = False


class Wire(Protocol):
    """The methods of a transport that are needed here."""

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that wait for the client."""

    def is_reading(self) -> bool:
        """Return whether bytes are read from the client."""


class Deadlines:
    """The deadlines of one connection. Progress is what has changed since the last check.

    unsent: bytes that waited for the client at the last check.
    """

    __slots__ = (
        "_asked",
        "_began",
        "_idle_since",
        "_limits",
        "_moved",
        "_reading",
        "_seen",
        "_swept",
        "_windowed",
        "unsent",
    )

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self.unsent = 0
        self._moved = 0.0  # when the client last took bytes
        self._asked = 0  # requests at the last check
        self._idle_since = self._swept = now
        self._began = -1.0  # the body that the next four describe
        self._reading = 0.0  # seconds for which it was read
        self._windowed = 0.0  # seconds of the present window
        self._seen = 0  # bytes at the start of that window

    def overdue(
        self, now: float, wire: Wire, gate: Gate, *, asked: int, is_idle: bool, is_serving: bool
    ) -> Overdue | None:
        """Check all deadlines. Return the one that has passed, if any.

        now: loop time. asked: requests so far. is_serving: one of them is being answered.
        """
        step, self._swept = now - self._swept, now
        unsent = wire.get_write_buffer_size()
        if unsent != self.unsent:
            self.unsent, self._moved = unsent, now
        elif unsent and now - self._moved > self._limits.stall:
            return Overdue(f"it took no byte of its answer for {self._limits.stall:g} s")
        if gate.awaits is None:
            return self._idle(now, asked, is_idle=is_idle)
        if gate.awaits == "body":
            return self._body(now, step, gate, is_reading=wire.is_reading())
        if is_serving:  # the time of a head begins when the answer before it has ended
            gate.since = now
        if now - gate.since > self._limits.head:
            return Overdue(f"the head of its request was not whole after {self._limits.head:g} s")
        return None

    def idle_for(self, now: float, asked: int) -> float:
        """Return for how many seconds at least nothing was asked for, as of the last check."""
        return now - self._idle_since if asked == self._asked else 0.0

    def _idle(self, now: float, asked: int, *, is_idle: bool) -> Overdue | None:
        if not is_idle or self.unsent or asked != self._asked:
            self._asked, self._idle_since = asked, now
        if now - self._idle_since > self._limits.idle * _MARGIN:
            return Overdue(f"it asked for nothing for {self._limits.idle:g} s", is_idle=True)
        return None

    def _body(self, now: float, step: float, gate: Gate, *, is_reading: bool) -> Overdue | None:
        limits = self._limits
        if gate.began != self._began:
            self._began, self._reading, self._windowed, self._seen = gate.began, 0.0, 0.0, 0
        elif is_reading:
            step = min(step, _LONGEST_STEP)
            self._reading += step
            self._windowed += step
        if not is_reading:  # the gateway takes no more for now
            gate.since = now
        if now - gate.since > limits.body:
            return Overdue(f"no byte of its request body came for {limits.body:g} s")
        if self._reading > limits.body_total:
            return Overdue(f"its request body was not whole after {limits.body_total:g} s")
        if self._windowed > limits.body_window:
            if gate.taken - self._seen < limits.body_rate * limits.body_window:
                return Overdue(
                    f"its request body came at less than {limits.body_rate} bytes/s "
                    f"for {limits.body_window:g} s"
                )
            self._windowed, self._seen = 0.0, gate.taken
        return None
