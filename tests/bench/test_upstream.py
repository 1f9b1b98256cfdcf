"""The upstream's pace: it must not be what is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench import upstream
from bench.upstream import FINEST, Wheel


class Clock:
    """A loop's time and its timers, by hand; its clock counts whole milliseconds, as uvloop's."""

    def __init__(self) -> None:
        self.now = 1.0007  # seconds
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return int(self.now * 1000) / 1000

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        assert when - self.time() > FINEST / 2  # else the loop would turn without a rest
        self.timers.append((when, call))

    def run(self) -> None:
        """The next timer, which is due at a whole millisecond."""
        (when, call), self.timers = self.timers[0], self.timers[1:]
        self.now = round(when, 3) + 0.0001
        call()


class Stream:
    def __init__(self, clock: Clock, turns: int) -> None:
        self._clock = clock
        self._turns = turns
        self.at: list[float] = []

    def send_next(self) -> bool:
        self.at.append(self._clock.now)
        return len(self.at) < self._turns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(upstream.asyncio, "get_running_loop", lambda: clock)
    return clock


def test_every_stream_gets_a_turn_once_per_pace_each_at_a_time_of_its_own(clock: Clock) -> None:
    wheel = Wheel(0.02)
    streams: list[Any] = [Stream(clock, 5) for _ in range(3)]
    for stream in streams:
        wheel.add(stream)
    while clock.timers:
        clock.run()
    for stream in streams:
        gaps = [later - at for at, later in zip(stream.at, stream.at[1:], strict=False)]
        assert gaps == pytest.approx([0.02] * 4)
    assert len({round(stream.at[0], 4) for stream in streams}) == 3


def test_the_wheel_stands_still_without_streams_and_starts_again(clock: Clock) -> None:
    wheel = Wheel(0.02)
    assert clock.timers == []
    for _ in range(2):
        stream: Any = Stream(clock, 2)
        wheel.add(stream)
        while clock.timers:
            clock.run()
        assert len(stream.at) == 2
        clock.now += 100
