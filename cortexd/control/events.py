"""What happens in the fleet, told to whoever listens at the moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

import msgspec

BACKLOG: Final = 1000  # events that a listener may be behind; one that is further behind is let go

Kind = Literal[
    "load_started",
    "load_progress",
    "load_ready",
    "load_failed",
    "evicted",
    "node_up",
    "node_down",
    "config_reloaded",
]


class FleetEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of them. `ts`: seconds since the epoch; `seconds`: what a load took.

    fraction: of a load, 0 to 1; stage: what it is at. message: why something failed.
    """

    event: Kind
    ts: float
    node: str | None = None
    model: str | None = None
    stage: str | None = None
    fraction: float | None = None
    seconds: float | None = None
    message: str | None = None


class Events:
    """The stream of events. Nothing is kept: a listener hears what comes after it has joined."""

    def __init__(self) -> None:
        self._listeners: dict[asyncio.Queue[FleetEvent | None], Callable[[], None]] = {}

    def tell(
        self,
        event: Kind,
        *,
        node: str | None = None,
        model: str | None = None,
        stage: str | None = None,
        fraction: float | None = None,
        seconds: float | None = None,
        message: str | None = None,
    ) -> None:
        """Tell every listener; never waits for one."""
        if not self._listeners:
            return
        said = FleetEvent(
            event, round(time.time(), 3), node, model, stage, fraction, seconds, message
        )
        for queue in list(self._listeners):
            try:
                queue.put_nowait(said)
            except asyncio.QueueFull:
                self._let_go(queue)

    @contextmanager
    def listening(self, let_go: Callable[[], None]) -> Iterator[asyncio.Queue[FleetEvent | None]]:
        """A queue of what happens while the block runs; None is the end.

        let_go: called when None is put in, for who may not get to read it.
        """
        queue: asyncio.Queue[FleetEvent | None] = asyncio.Queue(BACKLOG)
        self._listeners[queue] = let_go
        try:
            yield queue
        finally:
            self._listeners.pop(queue, None)

    def close(self) -> None:
        """Let every listener go."""
        for queue in list(self._listeners):
            self._let_go(queue)

    def _let_go(self, queue: asyncio.Queue[FleetEvent | None]) -> None:
        let_go = self._listeners.pop(queue)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)
        let_go()
