"""One coarse clock for many deadlines: a timer for each would cost more than what it guards.

What is watched keeps cheap marks while it works; a few times a second everything is looked at.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

TICK: Final = 0.25  # seconds: how late a deadline is noticed, if not said otherwise


class Watched(Protocol):
    """Something with deadlines."""

    def sweep(self, now: float) -> None:
        """Look at the deadlines; `now` is loop time. It may stop being watched from here."""


class Sweeper:
    """Calls `sweep` on everything watched, every `tick` seconds, as long as there is anything."""

    def __init__(self, tick: float = TICK) -> None:
        self._every = tick
        self._watched: set[Watched] = set()
        self._due = 0.0  # loop time of the next check
        self._has_waited = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._watched)

    @property
    def watched(self) -> frozenset[Watched]:
        """All of it."""
        return frozenset(self._watched)

    def watch(self, watched: Watched) -> None:
        """Begin to look at it."""
        self._watched.add(watched)
        if self._timer is None:
            self._schedule(asyncio.get_running_loop())

    def forget(self, watched: Watched) -> None:
        """Look at it no more; a second call does nothing."""
        self._watched.discard(watched)

    def close(self) -> None:
        """Stop for good."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        # So late, the process stood still (it was stopped, or busy), and others may well have met
        # their deadlines: what they sent meanwhile is read before the next check.
        self._has_waited = now - self._due > self._every and not self._has_waited
        if not self._has_waited:
            for watched in list(self._watched):
                watched.sweep(now)
        self._timer = None
        if self._watched:
            self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._every
        self._timer = loop.call_later(self._every, self._tick)
