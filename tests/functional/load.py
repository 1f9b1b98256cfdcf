"""Clients that never stop asking, and a count of what became of every request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from tests.fakes import FakeNeuron
from tests.functional.raw import Address, Client, Heard, connected, post
from tests.waiting import until

EVENTS = 20  # of a stream
PACE = 0.1  # seconds between two of them


class Talker(FakeNeuron):
    """A neuron whose streams take a while."""

    def __init__(self) -> None:
        super().__init__({"m": "loaded"})
        self.infer = self._talk

    async def _talk(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            return await self._infer(request, body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(EVENTS):
            chunk = {"choices": [{"index": 0, "delta": {"content": f"{number} "}}]}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await asyncio.sleep(PACE)
        await response.write(b"data: [DONE]\n\n")
        return response


class Load:
    """What became of the requests of all clients so far.

    failed: in words, whatever was no whole 200. told: those among them who were told to go away.
    refused: connections that nobody took.
    """

    def __init__(self) -> None:
        self.answered = self.streamed = self.refused = self.told = 0
        self.failed: list[str] = []
        self.is_over = False

    def note(self, heard: Heard, *, is_stream: bool) -> None:
        is_whole = heard.status == 200 and heard.complete
        if is_stream and is_whole:
            is_whole = heard.body.count(b"data: ") == EVENTS + 1
        if is_whole:
            self.answered += not is_stream
            self.streamed += is_stream
        elif heard.status == 503 and heard.code == "shutting_down":
            self.told += 1
        else:
            kind = "stream" if is_stream else "request"
            self.failed.append(f"{kind}: {heard.status} {heard.ended} {heard.raw[-300:]!r}")


@asynccontextmanager
async def loaded(
    address: Callable[[], Address], *, rate: float, streams: int, clients: int = 40
) -> AsyncIterator[Load]:
    """`rate` requests a second from so many clients, and so many streams, while the block runs;
    all of them are over at its end."""
    load, asking = Load(), []
    bodies = {
        is_stream: post(
            msgspec.json.encode({"model": "m", "messages": [], "stream": is_stream}),
            "Content-Type: application/json",
        )
        for is_stream in (False, True)
    }
    for number in range(clients):
        pause = clients / rate
        work = _keep_asking(load, address, bodies[False], pause, pause * number / clients)
        asking.append(asyncio.ensure_future(work))
    for number in range(streams):
        first = EVENTS * PACE * number / streams
        work = _keep_asking(load, address, bodies[True], 0.0, first, is_stream=True)
        asking.append(asyncio.ensure_future(work))
    try:
        await until(lambda: load.answered > clients and (load.streamed > 0 or not streams))
        yield load
    finally:
        load.is_over = True
        await asyncio.gather(*asking)


async def _keep_asking(
    load: Load,
    address: Callable[[], Address],
    request: bytes,
    pause: float,
    first: float,
    *,
    is_stream: bool = False,
) -> None:
    await asyncio.sleep(first)
    while not load.is_over:
        try:
            async with connected(address()) as client:
                await _ask_on(client, load, request, pause, is_stream=is_stream)
        except ConnectionRefusedError:
            load.refused += 1
            await asyncio.sleep(0.05)


async def _ask_on(
    client: Client, load: Load, request: bytes, pause: float, *, is_stream: bool
) -> None:
    """As long as the connection may be used again."""
    while not load.is_over:
        heard = await client.ask(request)
        load.note(heard, is_stream=is_stream)
        if heard.is_last or heard.ended is not None or not heard.complete:
            return
        await asyncio.sleep(pause)
