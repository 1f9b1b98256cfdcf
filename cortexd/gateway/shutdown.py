"""The end of a gateway: clients are let go before they must, and streams end in words.

A second of answers that say `Connection: close`, then no new connections; what runs then may go on
for a while, and is told at the end that it is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Final

from cortexd.proxy.listen import GRACE, Listener

LAST: Final = 1.0  # seconds that a client has to take the last words


class Shutdown:
    """Ends listeners. interrupt: has every answer that is under way end with its last words."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._is_hurried = False
        self._wait: asyncio.Timeout | None = None

    def hurry(self) -> None:
        """Wait for no answer any more."""
        self._is_hurried = True
        if self._wait is not None and not self._wait.expired():
            self._wait.reschedule(asyncio.get_running_loop().time())

    async def run(self, listeners: list[Listener], patience: float) -> None:
        """Until no connection is left. patience: seconds that running answers get."""
        for listener in listeners:
            listener.leave()
        await self._within(GRACE, _all(listener.wait_gone() for listener in listeners))
        for listener in listeners:
            await listener.stop()
        await self._within(patience, _all(listener.see_off() for listener in listeners))
        self._interrupt()
        await asyncio.gather(*(listener.finish(LAST) for listener in listeners))

    async def _within(self, seconds: float, end: Awaitable[object]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._is_hurried else seconds) as self._wait:
                await end
        self._wait = None


async def _all(ends: Iterable[Coroutine[None, None, None]]) -> None:
    await asyncio.gather(*ends)
