"""A port mapping, as Docker and NAT make them: TCP from one port to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.functional.raw import Address


class PortMapping:
    """`url`: where it listens. `connections`: how many it took. `sent`: what clients sent it."""

    def __init__(self, target: Address) -> None:
        self.url = ""
        self.connections = 0
        self.sent = bytearray()
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PortMapping]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            inner_reader, inner_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        for pair in ((reader, inner_writer, self.sent), (inner_reader, writer, None)):
            task = asyncio.ensure_future(_pump(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: bytearray | None
) -> None:
    try:
        with suppress(OSError):
            while data := await reader.read(65536):
                if heard is not None:
                    heard += data
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()
