"""getaddrinfo without a queue: each lookup has a thread of its own, which is abandoned at exit.

A pool of threads, the loop's own included, is full as soon as a name server leaves a handful of
lookups without an answer: the next one then waits for them, even if /etc/hosts would answer it,
and the process can't end before they do.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

# Lookups without an answer at one time; a resolver looks each name up only once. Beyond that the
# system is out of order, and a lookup fails at once. The unit's TasksMax leaves room for them.
MAX_THREADS: Final = 128

Info = tuple[int, int, int, str, tuple[Any, ...]]  # as getaddrinfo returns it


class LookupThreads:
    """Runs `socket.getaddrinfo` in daemon threads. Use it from one event loop."""

    def __init__(self) -> None:
        self.running = 0

    async def getaddrinfo(
        self, host: str | None, port: int | None = None, *, flags: int = 0
    ) -> Iterable[Info]:
        """Return the stream socket addresses of a host.

        Raises OSError, and ValueError for what can't be a host's name.
        """
        if self.running >= MAX_THREADS:
            raise OSError(None, f"{self.running} lookups have no answer; check the name servers")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Iterable[Info]] = loop.create_future()

        def land(found: Iterable[Info] | Exception) -> None:
            self.running -= 1
            if future.done():  # its caller was cancelled
                return
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

        def look_up() -> None:
            found: Iterable[Info] | Exception
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
            except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                found = error
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(land, found)

        thread = threading.Thread(target=look_up, name=f"resolve {host}"[:100], daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(None, f"no thread for a lookup: {error}; raise TasksMax=") from error
        self.running += 1
        return await future
