"""An event loop in virtual time: when all have had their turn, it is the next timer's moment."""

from __future__ import annotations

import asyncio
import selectors


class _Skipper(selectors.DefaultSelector):
    """Waits by turning the clock forward."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise AssertionError("everybody waits, and nothing is ever going to happen")
        if not events and timeout:
            self.now += timeout
        return events


class Clockwork(asyncio.SelectorEventLoop):
    """Deterministic: no real time, no outside world."""

    def __init__(self) -> None:
        self._skipper = _Skipper()
        super().__init__(self._skipper)

    def time(self) -> float:
        return self._skipper.now
