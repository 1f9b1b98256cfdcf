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

from tests.functional.faults import reset
from tests.waiting import GUARD

Address = tuple[str, int]
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
    is_last: no other may follow it on its connection.
    ended: how the connection ended with it, or None when it stands.
    """

    status: int = 0
    reason: str = ""
    version: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = False
    is_last: bool = False
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


class Hearing:
    """h11 hears one answer, piece by piece. `is_over`: no more of it comes; `left`: what came after
    its end."""

    def __init__(self, method: str) -> None:
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self._parser.send(h11.Request(method=method, target="/", headers=[("Host", "gateway")]))
        self._parser.send(h11.EndOfMessage())
        self._heard = Heard()
        self._raw, self._body = bytearray(), bytearray()
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """A piece, or nothing at the end of the connection."""
        self._raw += data
        self._parser.receive_data(data)
        try:
            while not self.is_over and (event := self._parser.next_event()) is not h11.NEED_DATA:
                self._note(event)
        except h11.RemoteProtocolError as error:
            self._heard.fault, self.is_over = str(error), True

    @property
    def left(self) -> bytes:
        return bytes(self._parser.trailing_data[0])

    def heard(self) -> Heard:
        """The answer so far."""
        self._heard.body = bytes(self._body)
        self._heard.raw = bytes(self._raw[: len(self._raw) - len(self.left)])
        return self._heard

    def _note(self, event: object) -> None:
        heard = self._heard
        match event:
            case h11.InformationalResponse():
                pass
            case h11.Response():
                heard.status, heard.reason = event.status_code, event.reason.decode("latin-1")
                heard.version = event.http_version.decode()
                heard.headers = _text(list(event.headers))
            case h11.Data():
                self._body += event.data
            case h11.EndOfMessage():
                heard.trailers = _text(list(event.headers))
                heard.complete = self.is_over = True
                heard.is_last = self._parser.our_state is not h11.DONE
            case _:  # the connection was closed
                self.is_over = True


class Client:
    """One connection. Nothing is read unless a method here says so.

    received: all that was read of it. ended: how it ended, once that was read, too.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.ended: Ended | None = None
        self._taken = 0  # bytes of what was received that a method has returned

    @property
    def unread(self) -> int:
        """Bytes that were received and that no method has returned."""
        return len(self.received) - self._taken

    async def send(self, data: bytes) -> None:
        """Returns when the kernel has it all. Raises ConnectionError when nobody takes it."""
        async with asyncio.timeout(GUARD):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read_some(self) -> bytes:
        """What comes next, for the other methods to return; nothing at the end, which `ended`
        tells."""
        try:
            async with asyncio.timeout(GUARD):
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        except ConnectionError:
            self.ended = "reset"
            return b""
        if not data:
            self.ended = "eof"
        self.received += data
        return data

    async def read_until(self, mark: bytes) -> bytes:
        """All up to and including `mark`. Fails when the connection ends before."""
        while (at := self.received.find(mark, self._taken)) < 0:
            assert await self.read_some(), f"ended ({self.ended}) before {mark!r}: {self._take()!r}"
        return self._take(at + len(mark))

    async def read_rest(self) -> bytes:
        """All up to the end of the connection."""
        while self.ended is None:
            await self.read_some()
        return self._take()

    async def read_answer(self, method: str = "POST", so_far: bytes = b"") -> Heard:
        """The next answer, as far as it comes. `so_far` was read already."""
        hearing = Hearing(method)
        if so_far:
            hearing.feed(so_far)
        while not hearing.is_over:
            if not self.unread and self.ended is None:
                await self.read_some()
            if not self.unread and self.ended == "reset":
                break
            hearing.feed(self._take())
        self._taken -= len(hearing.left)
        heard = hearing.heard()
        heard.ended = self.ended
        return heard

    async def ask(self, request: bytes) -> Heard:
        """Send a request and hear its answer."""
        await self.send(request)
        return await self.read_answer(request.split(b" ", 1)[0].decode())

    def ends(self) -> tuple[Address, Address]:
        """Our address and theirs."""
        return self.sock.getsockname(), self.sock.getpeername()

    def leave(self) -> None:
        """FIN; RST when something is unread."""
        self.sock.close()

    def reset(self) -> None:
        """RST."""
        reset(self.sock)
        self.sock.close()

    def _take(self, end: int | None = None) -> bytes:
        taken = bytes(self.received[self._taken : end])
        self._taken += len(taken)
        return taken


@asynccontextmanager
async def connected(
    address: Address, *, receive_buffer: int | None = None
) -> AsyncIterator[Client]:
    """A connection to that address; `receive_buffer` is the kernel's, in bytes."""
    with socket.socket() as sock:
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, address)
        yield Client(sock)


async def answered(address: Address, *sent: bytes) -> bytes:
    """All that comes back, to the end, when these are sent one after the other."""
    async with connected(address) as client:
        for part in sent:
            await client.send(part)
            await asyncio.sleep(0)  # a turn of the loop: the other side may be on it
        return await client.read_rest()


def answers(received: bytes, *methods: str) -> list[Heard]:
    """The answers to requests of those methods: each of them whole, and nothing else."""
    found: list[Heard] = []
    for method in methods:
        assert not found or not found[-1].is_last
        hearing = Hearing(method)
        hearing.feed(received)
        if not hearing.is_over:
            hearing.feed(b"")
        heard, received = hearing.heard(), hearing.left
        assert heard.complete, heard
        assert heard.raw.startswith(b"HTTP/1.1 %d " % heard.status), "no informational one"
        found.append(heard)
    assert received == b""
    return found


def _text(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode("latin-1")) for name, value in headers]
