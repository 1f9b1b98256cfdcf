"""A hostile upstream and a raw client: what a well-behaved library would never put on a socket.

An `Origin` plays one script per request, over real sockets, and records what it was sent, byte by
byte, and how each of its connections ended. A `Client` writes bytes and hears what comes back;
h11 is its oracle for what a complete answer is.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import h11

from tests.waiting import GUARD

# netlink(7), sock_diag(7)
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_ANY_COOKIE = 0xFFFFFFFF

Ending = Literal["fin", "rst"]


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes, as one write; goes on when the kernel has taken them."""

    data: bytes

    async def run(self, peer: Peer) -> None:
        await peer.send(self.data)


@dataclass(frozen=True, slots=True)
class Drip:
    """Bytes in pieces of these sizes, in turn, each of which the other side sees by itself."""

    data: bytes
    sizes: Sequence[int] = (1,)

    async def run(self, peer: Peer) -> None:
        at, sizes = 0, cycle(self.sizes)
        while at < len(self.data):
            size = next(sizes)
            await peer.send(self.data[at : at + size])
            at += size
            for _ in range(3):  # the other side is on this very loop: it has its turn
                await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing, until the test says so or the other side has gone."""

    until: asyncio.Event

    async def run(self, peer: Peer) -> None:
        await peer.wait_for(self.until)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing, for that many seconds: only for claims about time itself."""

    seconds: float

    async def run(self, peer: Peer) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True, slots=True)
class Tell:
    """Say that the script has come this far."""

    event: asyncio.Event

    async def run(self, peer: Peer) -> None:
        self.event.set()


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing any more; ends when the other side does."""

    async def run(self, peer: Peer) -> None:
        await peer.gone.wait()


@dataclass(frozen=True, slots=True)
class Read:
    """As a script's first step: read only that many bytes of the request instead of all of it.
    `Read(0)` goes on as soon as the connection stands."""

    size: int

    async def run(self, peer: Peer) -> None:
        await peer.wait_received(self.size)
        peer.transport.pause_reading()


@dataclass(frozen=True, slots=True)
class Close:
    """FIN, in an orderly way."""

    async def run(self, peer: Peer) -> None:
        peer.transport.close()


@dataclass(frozen=True, slots=True)
class HalfClose:
    """FIN, without an end of our own: what comes is still taken, or not."""

    async def run(self, peer: Peer) -> None:
        peer.transport.write_eof()


@dataclass(frozen=True, slots=True)
class Reset:
    """RST; what was sent before has been read by then (it would be lost otherwise)."""

    async def run(self, peer: Peer) -> None:
        await peer.wait_drained()
        reset(peer.transport.get_extra_info("socket"))
        peer.transport.abort()


Step = Send | Drip | Pause | Wait | Tell | Stall | Read | Close | HalfClose | Reset
Script = Sequence[Step]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as an origin got it. `headers` keeps order and duplicates, names in lower case."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    raw: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for known, value in self.headers if known == name.lower()]


class Peer(asyncio.Protocol):
    """One connection to an origin."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._writable = asyncio.Event()
        self._writable.set()
        self._arrived = asyncio.Event()
        self._unread = bytearray()
        self._written = 0
        self.requests: list[Request] = []
        self.gone = asyncio.Event()  # the other side has closed, or we have
        self.ending: Ending | None = None  # how the other side closed, if it was the first

    @property
    def sent(self) -> int:
        """Bytes that the kernel has taken from us."""
        return self._written - self.transport.get_write_buffer_size()

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        transport.set_write_buffer_limits(high=1, low=0)  # with TLS, nothing is ever under 0
        self.ends: tuple[tuple[str, int], tuple[str, int]] = (
            transport.get_extra_info("sockname"),
            transport.get_extra_info("peername"),
        )
        self._origin.peers.append(self)
        self._task = asyncio.create_task(self._play())

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._arrived.set()

    def eof_received(self) -> bool:
        self._end("fin")
        return True  # we may go on writing: hostile origins do

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("rst" if isinstance(exc, ConnectionError) else "fin")
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def send(self, data: bytes) -> None:
        """Write; returns when the kernel has it all."""
        view = memoryview(data)
        for at in range(0, len(data), 65536):
            if self.transport.is_closing():
                return
            piece = view[at : at + 65536]
            self._written += len(piece)
            self.transport.write(piece)
            await self._writable.wait()

    async def wait_for(self, event: asyncio.Event) -> None:
        """Until the event, or the end of the connection."""
        waiting = [asyncio.create_task(each.wait()) for each in (event, self.gone)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def wait_received(self, size: int) -> None:
        """Until that much of the next request has come, or the end of the connection."""
        while len(self._unread) < size and not self.gone.is_set():
            self._arrived.clear()
            await self.wait_for(self._arrived)

    async def wait_gone(self) -> None:
        """Until the other side has closed the connection; fails after the guard."""
        async with asyncio.timeout(GUARD):
            await self.gone.wait()

    async def wait_drained(self) -> None:
        """Until the other side has read all that was sent."""
        here, there = self.ends
        async with asyncio.timeout(GUARD):
            while queued(here, there)[0] or queued(there, here)[1]:
                await asyncio.sleep(0.001)

    def stop(self) -> None:
        """Abort, whatever the script is at."""
        self._task.cancel()
        self.transport.abort()

    def _end(self, ending: Ending) -> None:
        if not self.gone.is_set():
            self.ending = ending
            self.gone.set()

    async def _play(self) -> None:
        fresh = True
        while not self.gone.is_set():
            if not (fresh and self._origin.is_eager()):
                await self.wait_received(1)
                if not self._unread:
                    return
            fresh = False
            script = self._origin.next_script(self)
            if script and not isinstance(script[0], Read):
                request = await self._request()
                if request is None:
                    return
            for step in script:
                await step.run(self)
                if self.transport.is_closing():
                    return
        self.transport.close()

    async def _request(self) -> Request | None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        raw, head, body = bytearray(), None, bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                if not self._unread and self.gone.is_set():
                    return None
                await self.wait_received(1)
                raw += self._unread
                parser.receive_data(bytes(self._unread))
                self._unread.clear()
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None
        assert head is not None
        left = bytes(parser.trailing_data[0])
        self._unread[:0] = left
        request = Request(
            head.method.decode(),
            head.target.decode(),
            [(name.decode(), value.decode("latin-1")) for name, value in head.headers],
            bytes(body),
            bytes(raw[: len(raw) - len(left)]),
        )
        self.requests.append(request)
        self._origin.requests.append(request)
        self._origin.asked.set()
        return request


class Origin:
    """A server that answers each request with the next of its scripts, the last one for ever.

    `answer` is asked instead, when given, as soon as the first byte of a request has come.
    `send_buffer` and `receive_buffer` are the kernel's, in bytes. `tls`: it speaks https.
    """

    def __init__(
        self,
        *scripts: Script,
        answer: Callable[[Peer], Script] | None = None,
        send_buffer: int | None = None,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._scripts = list(scripts)
        self._answer = answer
        self._buffers = {socket.SO_SNDBUF: send_buffer, socket.SO_RCVBUF: receive_buffer}
        self.peers: list[Peer] = []
        self.requests: list[Request] = []
        self.asked = asyncio.Event()  # a whole request has come
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    def is_eager(self) -> bool:
        """Whether the next script begins before a request does."""
        return self._answer is None and next(iter(self._scripts[0]), None) == Read(0)

    def next_script(self, peer: Peer) -> Script:
        if self._answer is not None:
            return self._answer(peer)
        return self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]

    async def wait_asked(self) -> Peer:
        """The latest connection, once a whole request has come since the last call."""
        async with asyncio.timeout(GUARD):
            await self.asked.wait()
        self.asked.clear()
        return next(peer for peer in reversed(self.peers) if peer.requests)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Origin]:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option, size in self._buffers.items():
            if size is not None:
                listening.setsockopt(socket.SOL_SOCKET, option, size)
        listening.bind(("127.0.0.1", self.port))
        server = await asyncio.get_running_loop().create_server(
            lambda: Peer(self), sock=listening, backlog=1024, ssl=self._tls
        )
        self.port = listening.getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for peer in self.peers:
                peer.stop()
            await server.wait_closed()


@contextmanager
def refusing() -> Iterator[str]:
    """The URL of a port that refuses connections, kept from being taken by others."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://localhost:{bound.getsockname()[1]}"


@contextmanager
def black_hole(ip: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The URL of a port that never answers a SYN: its queue of unaccepted connections is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind((ip, port))
        listening.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(listening.getsockname())
        yield f"http://{ip}:{listening.getsockname()[1]}"


def queued(here: tuple[str, int], there: tuple[str, int]) -> tuple[int, int]:
    """Bytes that the kernel holds for the socket `here` → `there`: (not yet acknowledged, unread).

    A socket that is closed holds none. Asked by sock_diag(7): /proc/net/tcp is slow to read where
    other tests have left thousands of connections in TIME_WAIT.
    """
    socket_id = struct.pack(
        "!HH16s16s", here[1], there[1], socket.inet_aton(here[0]), socket.inet_aton(there[0])
    ) + struct.pack("=III", 0, _ANY_COOKIE, _ANY_COOKIE)
    every_state = 0xFFFFFFFF
    query = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, every_state) + socket_id
    head = struct.pack("=IHHII", 16 + len(query), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(head + query)
        reply = kernel.recv(4096)
    if int.from_bytes(reply[4:6], sys.byteorder) == _NLMSG_ERROR:
        code = -struct.unpack_from("=i", reply, 16)[0]
        if code != errno.ENOENT:
            raise OSError(code, os.strerror(code))
        return 0, 0
    unread, unsent = struct.unpack_from("=II", reply, 16 + 4 + 48 + 4)
    return unsent, unread


def reset(sock: socket.socket) -> None:
    """Make the coming close an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
