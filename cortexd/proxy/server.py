"""The server behind a listener: its connections, how many there may be, and how they end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final, cast

from aiohttp import web

from cortexd import errors
from cortexd.proxy.deadlines import DEFAULT_LIMITS, Limits
from cortexd.proxy.door import Door, Handler, Keeper, Refuse
from cortexd.proxy.sweeper import Sweeper

# Bytes per second (1 Mbit/s) at which the largest body allowed is whole within its deadline.
SLOWEST_UPLOAD: Final = 128 << 10
SWEEP: Final = 1.0  # seconds between two looks at the deadlines; they are met to within that


class DoorServer(Keeper):
    """Makes a Door of every connection.

    max_connections: above it a connection is answered 503 `overloaded` and closed.
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
        slowest = max_body / SLOWEST_UPLOAD
        if slowest > limits.body_total:
            limits = replace(limits, body_total=slowest)
        self._limits = limits
        self._doors: set[Door] = set()
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
