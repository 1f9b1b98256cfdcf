"""A server of the byte path with a handler that notes what reached it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from cortexd.errors import Kind
from cortexd.proxy.deadlines import Limits
from cortexd.proxy.door import Door
from cortexd.proxy.listen import Listener, listen
from cortexd.proxy.server import DoorServer
from tests.functional.raw import Address

PATIENT = Limits(3600, 3600, 3600, 3600, 3600)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Site:
    """A DoorServer that listens. `handled`: method, target and body of what reached its handler;
    `refused`: the codes of what did not."""

    def __init__(self, handler: Handler | None) -> None:
        self.handled: list[tuple[str, str, bytes]] = []
        self.refused: list[str] = []
        self.cancelled = asyncio.Event()
        self._handler = handler
        self.server: DoorServer
        self.listener: Listener

    @property
    def address(self) -> Address:
        return self.listener.address

    @property
    def door(self) -> Door:
        """The only connection there is."""
        (door,) = self.server.doors
        return door

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        index = len(self.handled)
        self.handled.append((request.method, request.raw_path, b""))
        try:
            if self._handler is not None:
                return await self._handler(request)
            body = await request.read()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.handled[index] = (request.method, request.raw_path, body)
        return web.Response(body=body or b"hello")

    def refuse(self, request: web.BaseRequest | None, kind: Kind, words: str) -> web.Response:
        self.refused.append(kind.code)
        path = "-" if request is None else request.path
        return web.Response(
            status=kind.status, body=f"{kind.code} {path}".encode(), headers={"X-Code": kind.code}
        )


def held(body: bytes) -> tuple[Handler, asyncio.Event]:
    """A handler that answers with that body once the event is set."""
    is_let_go = asyncio.Event()

    async def hold(request: web.BaseRequest) -> web.StreamResponse:
        await is_let_go.wait()
        return web.Response(body=body)

    return hold, is_let_go


@asynccontextmanager
async def open_site(
    handler: Handler | None = None,
    *,
    limits: Limits = PATIENT,
    max_connections: int = 100,
    max_body: int = 1 << 20,
) -> AsyncIterator[Site]:
    """Without a handler it answers with the body it was sent, or "hello"."""
    site = Site(handler)
    site.server = DoorServer(
        site.handle,
        site.refuse,
        max_body=max_body,
        max_connections=max_connections,
        limits=limits,
    )
    site.listener = await listen(site.server, "127.0.0.1", 0, shutdown_timeout=0.2)
    try:
        yield site
    finally:
        await site.listener.close()
