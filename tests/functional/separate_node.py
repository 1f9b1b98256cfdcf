"""A fake node in a process of its own, which a test can stop and continue with signals: its kernel
goes on to acknowledge what is sent to it.

Run as a program it serves the model `m` and prints its URL. Requests that stream get one event and
then nothing; others get nothing at all.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.fakes import FakeNeuron
from tests.waiting import GUARD

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'


class SeparateNode:
    """The process. `url`: where it listens."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url

    def stop(self) -> None:
        """Send SIGSTOP: the process does nothing any more, and its sockets stay."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT."""
        os.kill(self._process.pid, signal.SIGCONT)


@asynccontextmanager
async def separate_node() -> AsyncIterator[SeparateNode]:
    """Run a node; kill it at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(GUARD):
            url = (await process.stdout.readline()).decode().strip()
        assert url, "it did not start"
        yield SeparateNode(process, url)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    if body.get("stream"):
        await response.prepare(request)
        await response.write(EVENT)
    await asyncio.Event().wait()
    return response


async def _serve() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = _infer
    async with neuron.running():
        sys.stdout.write(f"{neuron.url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
