"""A client that sends whatever bytes it is told to, and a server that notes what reached it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import h11
from aiohttp import web

from cortexd.errors import Kind
from cortexd.proxy.door import Door, DoorServer, Limits
from cortexd.proxy.listen import Listener, listen

GUARD = 20.0  # seconds; a test that waits longer than that hangs
PATIENT = Limits(3600, 3600, 3600, 3600, 3600)

Address = tuple[str, int]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = b""

    def send(self, data: bytes) -> None:
        """Send; never waits."""
        self._writer.write(data)

    async def read(self) -> bytes:
        """What comes next; nothing when the connection has ended, one way or another."""
        async with asyncio.timeout(GUARD):
            try:
                data = await self._reader.read(1 << 16)
            except ConnectionError:
                return b""
        self.received += data
        return data

    async def read_until(self, end: bytes) -> bytes:
        """Everything that was received, once `end` is in it. Fails if it never comes."""
        while end not in self.received:
            assert await self.read(), self.received
        return self.received

    async def read_to_end(self) -> bytes:
        """Everything that was received, once the other side has ended the connection."""
        while await self.read():
            pass
        return self.received

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


@asynccontextmanager
async def connected(address: Address, receive_buffer: int | None = None) -> AsyncIterator[Client]:
    """A connection. receive_buffer: bytes that the kernel takes for a client that reads none."""
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)
    except OSError:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 14)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answered(address: Address, *sent: bytes) -> bytes:
    """Send, each part once the one before is on its way; everything that comes back."""
    async with connected(address) as client:
        for part in sent:
            client.send(part)
            await asyncio.sleep(0)
        return await client.read_to_end()


def answers(received: bytes, *methods: str) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of the answers to requests of those methods, and nothing else."""
    peer = h11.Connection(h11.CLIENT)
    peer.receive_data(received)
    peer.receive_data(b"")
    found = []
    for index, method in enumerate(methods):
        if index:
            peer.start_next_cycle()
        peer.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        peer.send(h11.EndOfMessage())
        head = peer.next_event()
        assert isinstance(head, h11.Response), head
        body = b""
        while isinstance(event := peer.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        headers = {name.decode(): value.decode() for name, value in head.headers}
        found.append((head.status_code, headers, body))
    assert peer.trailing_data[0] == b""
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the loop will bring about; fails after the guard."""
    async with asyncio.timeout(GUARD):
        while not condition():
            await asyncio.sleep(0.002)


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
