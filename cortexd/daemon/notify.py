"""Telling systemd how the service is (sd_notify): READY=1, STOPPING=1, STATUS=…

Without a NOTIFY_SOCKET nothing happens, and nothing that happens here ever harms the service.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from cortexd.daemon.tasks import Tasks

PAUSE: Final = 1.0  # seconds between two looks at what there is to say


def send(message: str) -> None:
    """Send `KEY=value` lines to the service manager, if there is one; never blocks or raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket is spelt with a leading NUL
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.connect(address)
        manager.send(message.encode(errors="replace"))


def reloading() -> None:
    """A reload begins; READY=1 ends it, well or not. The time tells it from the one before."""
    send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two signs of life, half of what the manager waits for; None: it does not."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in {"", str(os.getpid())}:
        return None
    return int(microseconds) / 2e6


class Reporter:
    """Tells the manager how things stand, and that the loop turns. `status`: one line of words."""

    def __init__(self, status: Callable[[], str]) -> None:
        self._status = status
        self._said = ""
        self._tasks = Tasks()

    def start(self) -> None:
        """Begin to tell."""
        self._tasks.spawn("status", self._keep_telling())
        if (interval := watchdog_interval()) is not None:
            self._tasks.spawn("watchdog", self._keep_petting(interval))

    async def close(self) -> None:
        """Tell no more."""
        await self._tasks.close()

    async def _keep_telling(self) -> None:
        while True:
            words = " ".join(self._status().split())  # a line end would begin another field
            if words != self._said:
                self._said = words
                send(f"STATUS={words}")
            await asyncio.sleep(PAUSE)

    async def _keep_petting(self, interval: float) -> None:
        while True:
            send("WATCHDOG=1")
            await asyncio.sleep(interval)
