"""Virtual time: an agenda of what happens when. Nothing sleeps; a simulated hour takes a second."""

from __future__ import annotations

import heapq
from collections.abc import Callable

START = 1000.0  # not 0, which a careless `if not since` would take for "never"


class Clock:
    """What is to happen, in order of time; at one moment in the order of being entered."""

    def __init__(self) -> None:
        self.now = START
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._entered = 0
        self._chores = 0

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Have `act` called that much later. As long as such things are due, time goes on."""
        self._enter(seconds, act)

    def every(self, pause: Callable[[], float], act: Callable[[], None]) -> None:
        """Have `act` called again and again; it does not keep time going by itself."""

        def again() -> None:
            self._chores -= 1
            act()
            enter()

        def enter() -> None:
            self._chores += 1
            self._enter(pause(), again)

        enter()

    def run(self, until: float, is_awaited: Callable[[], bool]) -> None:
        """Go on until only chores are left and nothing `is_awaited`, or it is `until`."""
        while self._agenda[0][0] <= until:
            if len(self._agenda) == self._chores and not is_awaited():
                return
            self.now, _, act = heapq.heappop(self._agenda)
            act()

    def _enter(self, seconds: float, act: Callable[[], None]) -> None:
        self._entered += 1
        heapq.heappush(self._agenda, (self.now + max(0.0, seconds), self._entered, act))
