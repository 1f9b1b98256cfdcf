"""A process that is stopped for longer than its clients may take, and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.functional.raw import Address, connected
from tests.waiting import GUARD

ROOT = Path(__file__).parents[2]
LIMIT = 2.0  # seconds
FIRST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"

# Says where it listens.
PROGRAM = f"""
import asyncio, uvloop
from aiohttp import web
from cortexd.proxy.deadlines import Limits
from tests.proxy.site import open_site

async def answer(request):
    return web.Response(body=await request.read())

async def main():
    limits = Limits(head={LIMIT}, body={LIMIT}, idle={LIMIT})
    async with open_site(answer, limits=limits) as site:
        print(site.address[1], flush=True)
        await asyncio.Event().wait()

uvloop.run(main())
"""


class Stoppable:
    """A server in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, address: Address) -> None:
        self.process = process
        self.address = address

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(GUARD):
            return (await self.process.stdout.readline()).decode().strip()


@asynccontextmanager
async def stoppable() -> AsyncIterator[Stoppable]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    server = Stoppable(process, ("", 0))
    try:
        server.address = ("127.0.0.1", int(await server.line()))
        yield server
    finally:
        process.kill()
        await process.wait()


# What came before the process was stopped, and what came meanwhile.
HALVES = {
    "body": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nhe", b"re"),
    "head": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n", b"\r\nhere"),
    "idle": (b"", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nhere"),
}


async def test_a_request_whose_rest_came_while_the_process_was_stopped_is_served() -> None:
    async with stoppable() as server, AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(connected(server.address)) for name in HALVES
        }
        for name, client in clients.items():
            # Its answer shows that what comes with it has been read.
            await client.send(FIRST + HALVES[name][0])
        for client in clients.values():
            assert (await client.read_answer("POST")).body == b"hi"
        os.kill(server.process.pid, signal.SIGSTOP)
        for name, client in clients.items():
            await client.send(HALVES[name][1])
        await asyncio.sleep(1.2 * LIMIT)  # every deadline passes
        os.kill(server.process.pid, signal.SIGCONT)
        for name, client in clients.items():
            assert (await client.read_answer("POST")).body == b"here", name
