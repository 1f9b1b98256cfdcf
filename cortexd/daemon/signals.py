"""Waiting for the signal that ends a daemon."""

from __future__ import annotations

import asyncio
import signal


async def wait_for_stop() -> signal.Signals:
    """Until SIGTERM or SIGINT; which one it was."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(which: signal.Signals) -> None:
        if not stopped.done():
            stopped.set_result(which)

    for which in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(which, stop, which)
    try:
        return await stopped
    finally:
        for which in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(which)
