"""The signals of a daemon: the one that ends it, the one that hurries it, and the one to reload."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_ENDS: Final = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """What has come so far. hangup: called on SIGHUP; hurry: on the second signal that ends.

    A SIGHUP that comes while nobody has set `hangup` waits until somebody does.
    """

    def __init__(self) -> None:
        self.hurry: Callable[[], None] | None = None
        self._hangup: Callable[[], None] | None = None
        self._is_hung_up = False
        self._stopped: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    def on_hangup(self, hangup: Callable[[], None]) -> None:
        """Have this called on every SIGHUP."""
        self._hangup = hangup
        if self._is_hung_up:
            hangup()

    async def wait_for_stop(self) -> signal.Signals:
        """Until the first SIGTERM or SIGINT; which one it was."""
        return await self._stopped

    def came(self, which: signal.Signals) -> None:
        """One has come."""
        if which is signal.SIGHUP:
            self._is_hung_up = True
            if self._hangup is not None and not self._stopped.done():
                self._hangup()
        elif not self._stopped.done():
            self._stopped.set_result(which)
        elif self.hurry is not None:
            self.hurry()


@contextmanager
def handled(*also: signal.Signals) -> Iterator[Signals]:
    """Take SIGTERM and SIGINT, and these, as long as the block runs."""
    loop, signals = asyncio.get_running_loop(), Signals()
    for which in (*_ENDS, *also):
        loop.add_signal_handler(which, signals.came, which)
    try:
        yield signals
    finally:
        for which in (*_ENDS, *also):
            loop.remove_signal_handler(which)


async def wait_for_stop() -> signal.Signals:
    """Until SIGTERM or SIGINT; which one it was."""
    with handled() as signals:
        return await signals.wait_for_stop()
