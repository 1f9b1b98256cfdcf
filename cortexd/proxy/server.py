"""The server behind a listener: its connections, how many there may be, and how they end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import islice
from typing import Any, Final, cast

from aiohttp import web

from cortexd import errors
from cortexd.proxy.deadlines import DEFAULT_LIMITS, Limits
from cortexd.proxy.door import HANG_UP, Door, Handler, Keeper, Refuse
from cortexd.proxy.sweeper import Sweeper

# Bytes per second (1 Mbit/s) at which the largest body allowed is whole within its deadline.
SLOWEST_UPLOAD: Final = 128 << 10
# Connections above the limit that may wait for their clients to hang up; their descriptors are
# beyond the limit.
MOST_TURNED_AWAY: Final = 64
# At the limit on connections: how many of the oldest are checked, and for how many seconds the
# client of one that is closed for a new one has sent nothing that it owes.
EXAMINED: Final = 64
SILENT: Final = 2.0
SWEEP: Final = 1.0  # seconds between two looks at the deadlines; they are met to within that


class DoorServer(Keeper):
    """Makes a Door of every connection.

    max_connections: above it, a connection whose client is silent is closed for the new one; if
        there is none, the new one is answered 503 `overloaded` and closed.
    """

    def __init__(
        self,
        handler: Handler,
        refuse: Refuse,
        *,
        max_body: int,
        max_connections: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(handler, refuse, max_body)
        self._max_connections = max_connections
        self._given = self._limits = limits
        self.limit_bodies(max_body)
        self._doors: dict[Door, None] = {}  # in the order in which they were opened
        self._turned_away: dict[_TurnedAway, None] = {}
        self._were_idle: set[Door] = set()
        self._are_gone = asyncio.Event()
        self._are_gone.set()
        # The only timer there is for deadlines, whatever the number of connections.
        self._sweeper = Sweeper(
            min(
                SWEEP,
                limits.head / 4,
                limits.body / 4,
                limits.body_window / 4,
                limits.stall / 4,
                limits.idle / 4,
            )
        )

    @property
    def doors(self) -> frozenset[Door]:
        """The connections that are open."""
        return frozenset(self._doors)

    def __call__(self) -> Any:
        """The protocol of a new connection."""
        if len(self._doors) >= self._max_connections and not self._make_room():
            return _TurnedAway(self.refuse, self._turned_away, self._sweeper)
        door = Door(self, loop=self._loop, limits=self._limits)
        self._doors[door] = None
        self._are_gone.clear()
        self._sweeper.watch(door)
        return door

    def limit_bodies(self, max_body: int) -> None:
        """Give bodies of at most `max_body` bytes the time that they need, on new connections."""
        self.max_body = max_body
        total = max(self._given.body_total, max_body / SLOWEST_UPLOAD)
        self._limits = replace(self._given, body_total=total)

    def forget(self, door: Door) -> None:
        """A connection has ended."""
        self._sweeper.forget(door)
        self._doors.pop(door, None)
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
            door.end_idle()
        self._were_idle = idle

    def _make_room(self) -> bool:
        """Close the oldest connection whose client is silent. Return whether there was one.

        Those that are not silent are examined again after all others.
        """
        now = self._loop.time()
        for door in list(islice(self._doors, EXAMINED)):
            if door.silent_for(now) > SILENT:
                door.make_way()
                self.forget(door)
                return True
            self._doors[door] = self._doors.pop(door)
        return False

    def _idle(self) -> set[Door]:
        return {door for door in self._doors if door.is_idle}

    async def wait_gone(self) -> None:
        """Wait until no connection is left."""
        await self._are_gone.wait()

    def abort(self) -> None:
        """Cut every connection that is left."""
        for door in list(self._doors):
            door.abort()

    def end_turned_away(self) -> None:
        """Close the refused connections that have not been closed yet."""
        for each in list(self._turned_away):
            each.end()


class _TurnedAway(asyncio.Protocol):
    """A connection above the limit, answered before its request at the least cost.

    Closing it with bytes unread, or before they arrive, would reset it and destroy the answer (RFC
    9112, section 9.6): its client has a moment to read and to hang up.
    """

    def __init__(self, refuse: Refuse, others: dict[_TurnedAway, None], sweeper: Sweeper) -> None:
        self._refuse = refuse
        self._others = others
        self._sweeper = sweeper
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        response = self._refuse(
            None, errors.OVERLOADED, "Too many connections are open here; try again in a moment."
        )
        self._since = asyncio.get_running_loop().time()
        self._wire = cast(asyncio.Transport, transport)
        self._wire.write(_serialized(response))
        self._wire.write_eof()
        if len(self._others) >= MOST_TURNED_AWAY:
            next(iter(self._others)).end()
        self._others[self] = None
        self._sweeper.watch(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget()

    def sweep(self, now: float) -> None:
        """Close the connection once its client has had a moment."""
        if now - self._since > HANG_UP:
            self.end()

    def end(self) -> None:
        """Close the connection now."""
        self._forget()
        self._wire.abort()

    def _forget(self) -> None:
        self._others.pop(self, None)
        self._sweeper.forget(self)


def _serialized(response: web.Response) -> bytes:
    body = cast(bytes, response.body)
    head = [f"HTTP/1.1 {response.status} {response.reason}"]
    head += [f"{name}: {value}" for name, value in response.headers.items()]
    head += [f"Content-Length: {len(body)}", "Connection: close", "\r\n"]
    return "\r\n".join(head).encode() + body
