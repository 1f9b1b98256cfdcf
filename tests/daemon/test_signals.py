from __future__ import annotations

import asyncio
import os
import signal

from cortexd.daemon.signals import Signals, handled, wait_for_stop
from tests.waiting import until


async def test_the_first_signal_stops_and_the_second_hurries() -> None:
    hurried: list[int] = []
    with handled() as signals:
        signals.hurry = lambda: hurried.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await signals.wait_for_stop() is signal.SIGTERM
        assert not hurried
        os.kill(os.getpid(), signal.SIGINT)
        await until(lambda: hurried == [1])


async def test_a_hangup_before_anybody_listens_is_kept() -> None:
    reloads: list[int] = []
    with handled(signal.SIGHUP) as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: signals._is_hung_up)
        signals.on_hangup(lambda: reloads.append(1))
        assert reloads == [1]
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: len(reloads) == 2)


async def test_nobody_reloads_what_is_stopping() -> None:
    signals, reloads = Signals(), list[int]()
    signals.on_hangup(lambda: reloads.append(1))
    signals.came(signal.SIGTERM)
    signals.came(signal.SIGHUP)
    signals.came(signal.SIGTERM)  # with nobody to hurry
    assert reloads == []


async def test_either_signal_ends_the_wait() -> None:
    for which in (signal.SIGTERM, signal.SIGINT):
        waiting = asyncio.ensure_future(wait_for_stop())
        await asyncio.sleep(0)
        os.kill(os.getpid(), which)
        assert await waiting is which
