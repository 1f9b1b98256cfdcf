from __future__ import annotations

import asyncio
from collections.abc import Callable

from cortexd.proxy.sweeper import Sweeper
from tests.waiting import GUARD


class Looked:
    """Something watched that does as it is told the first time it is looked at."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.at = asyncio.Event()
        self.then = then

    def sweep(self, now: float) -> None:
        assert now <= asyncio.get_running_loop().time()
        self.at.set()
        self.then()


async def looked_at(*watched: Looked) -> None:
    async with asyncio.timeout(GUARD):
        for each in watched:
            await each.at.wait()


async def test_everything_watched_is_looked_at_again_and_again() -> None:
    sweeper = Sweeper()
    one, other = Looked(), Looked()
    sweeper.watch(one)
    sweeper.watch(other)
    await looked_at(one, other)
    one.at.clear()
    await looked_at(one)
    sweeper.close()


async def test_what_is_forgotten_is_left_alone_even_from_within_a_sweep() -> None:
    sweeper = Sweeper()
    once = Looked(lambda: sweeper.forget(once))
    other = Looked()
    sweeper.watch(once)
    sweeper.watch(other)
    await looked_at(once, other)
    once.at.clear()
    other.at.clear()
    await looked_at(other)
    assert not once.at.is_set()
    assert len(sweeper) == 1
    sweeper.close()


async def test_it_starts_again_when_there_is_something_to_watch_again() -> None:
    sweeper = Sweeper()
    once = Looked(lambda: sweeper.forget(once))
    sweeper.watch(once)
    await looked_at(once)
    later = Looked()
    sweeper.watch(later)
    await looked_at(later)
    sweeper.close()


async def test_after_a_standstill_one_round_is_left_out() -> None:
    """What others sent meanwhile is in the kernel, and is read before their deadlines count."""
    sweeper, looks = Sweeper(3600), 0

    class Counted:
        def sweep(self, now: float) -> None:
            nonlocal looks
            looks += 1

    sweeper.watch(Counted())
    sweeper._tick()
    assert looks == 1
    sweeper._due -= 10_000  # as if it was to look long ago
    sweeper._tick()
    assert looks == 1
    sweeper._due -= 10_000  # it is late again: the grace is for one round
    sweeper._tick()
    assert looks == 2
    sweeper.close()
