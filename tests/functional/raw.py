"""A client that writes what it is told and reads only when it is told; h11 judges what it hears."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import h11
import msgspec

from tests.functional.faults import GUARD, reset

Ended = Literal["eof", "reset"]


def post(
    body: bytes,
    *headers: str,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    version: str = "1.1",
) -> bytes:
    """A request in bytes; `headers` are whole lines."""
    lines = [f"{method} {path} HTTP/{version}", "Host: gateway", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


@dataclass(slots=True)
class Heard:
    """An answer as far as it came.

    complete: it ended as HTTP says; `fault` is h11's word when what came is not HTTP.
    ended: how the connection ended with it, or None when it stands.
    """

    status: int = 0
    reason: str = ""
    version: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = False
    fault: str | None = None
    ended: Ended | None = None
    raw: bytes = b""

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for known, value in self.headers if known == name.lower()]

    def get(self, name: str) -> str | None:
        """The only value of a header, or None. A second one is a fault."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def code(self) -> str | None:
        """Which refusal it is, if it is one of the gateway's."""
        return self.get("x-cortex-code")

    @property
    def json(self) -> object:
        return msgspec.json.decode(self.body)


class Client:
    """One connection to a gateway. Nothing is read unless a method here says so."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unread = bytearray()
        self.ended: Ended | None = None

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(GUARD):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read_some(self) -> bytes:
        """What comes next; nothing at the end, which `ended` tells."""
        try:
            async with asyncio.timeout(GUARD):
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        except ConnectionError:
            self.ended = "reset"
            return b""
        if not data:
            self.ended = "eof"
        return data

    async def read_until(self, mark: bytes) -> bytes:
        """All up to and including `mark`. Fails when the connection ends before."""
        while (at := self.unread.find(mark)) < 0:
            data = await self.read_some()
            assert data, f"ended ({self.ended}) before {mark!r}: {bytes(self.unread)!r}"
            self.unread += data
        taken = bytes(self.unread[: at + len(mark)])
        del self.unread[: at + len(mark)]
        return taken

    async def read_rest(self) -> bytes:
        """All up to the end of the connection."""
        while self.ended is None:
            self.unread += await self.read_some()
        taken = bytes(self.unread)
        self.unread.clear()
        return taken

    async def read_answer(self, method: str = "POST", so_far: bytes = b"") -> Heard:
        """The next answer, as far as it comes. `so_far` was read already."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "gateway")]))
        parser.send(h11.EndOfMessage())
        heard, raw, body = Heard(), bytearray(so_far), bytearray()
        parser.receive_data(so_far) if so_far else None
        try:
            while not heard.complete:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    if not self.unread and self.ended is None:
                        self.unread += await self.read_some()
                    if not self.unread:
                        if self.ended == "reset":
                            break
                        parser.receive_data(b"")
                        continue
                    raw += self.unread
                    parser.receive_data(bytes(self.unread))
                    self.unread.clear()
                elif isinstance(event, h11.Response):
                    heard.status, heard.reason = event.status_code, event.reason.decode("latin-1")
                    heard.version = event.http_version.decode()
                    heard.headers = _text(list(event.headers))
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    heard.complete = True
                    heard.trailers = _text(list(event.headers))
                elif isinstance(event, h11.ConnectionClosed):
                    break
        except h11.RemoteProtocolError as error:
            heard.fault = str(error)
        left = bytes(parser.trailing_data[0])
        self.unread[:0] = left
        heard.body, heard.raw = bytes(body), bytes(raw[: len(raw) - len(left)])
        heard.ended = self.ended
        return heard

    async def ask(self, request: bytes) -> Heard:
        """Send a request and hear its answer."""
        await self.send(request)
        return await self.read_answer(request.split(b" ", 1)[0].decode())

    def ends(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Our address and theirs."""
        return self.sock.getsockname(), self.sock.getpeername()

    def leave(self) -> None:
        """FIN; RST when something is unread."""
        self.sock.close()

    def reset(self) -> None:
        """RST."""
        reset(self.sock)
        self.sock.close()


@asynccontextmanager
async def connected(
    address: tuple[str, int], *, receive_buffer: int | None = None
) -> AsyncIterator[Client]:
    """A connection to that address; `receive_buffer` is the kernel's, in bytes."""
    with socket.socket() as sock:
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, address)
        yield Client(sock)


def _text(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode("latin-1")) for name, value in headers]
