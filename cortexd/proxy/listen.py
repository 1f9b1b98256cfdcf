"""Opening the listening sockets of a DoorServer, and closing them without losing a request."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cortexd.daemon.bound import BoundAddress
from cortexd.daemon.lookup import LookupThreads
from cortexd.daemon.resolver import is_localhost
from cortexd.proxy.acceptor import Acceptor
from cortexd.proxy.server import DoorServer

BACKLOG: Final = 1024
# Bytes that the kernel takes before it calls a socket full: else it would hide megabytes of a
# stalled client's answer where no back-pressure sees them. Accepted sockets inherit it.
UNSENT: Final = 16 << 10
# Seconds in which a client that keeps its connection alive gets an answer that says it's the last.
GRACE: Final = 1.0

RESERVED: Final = 256  # descriptors for everything but inference: nodes, logs, listeners, a shell
FEWEST: Final = 256  # connections that make a gateway worth starting


class TooFewDescriptors(Exception):
    """The limit on open files leaves too little; the message says what to change."""


def connection_cap() -> int:
    """How many connections this process may accept: each may need a second one, upstream.

    Raises the limit on open files as far as it goes first. Raises TooFewDescriptors.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # where the hard limit is beyond the kernel's own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    cap = (soft - RESERVED) // 2
    if cap < FEWEST:
        needed = RESERVED + 2 * FEWEST
        raise TooFewDescriptors(
            f"at most {soft} files may be open, {needed} are needed; raise the limit "
            "(LimitNOFILE= in the unit, or ulimit -Hn)"
        )
    return cap


class Listener:
    """A server that listens. `address` is where: (host, port). `bound`: where its sockets are.

    It ends by `close`, or by its steps: `leave`, `stop`, `see_off`, `finish`.
    """

    def __init__(
        self,
        server: DoorServer,
        acceptor: Acceptor,
        address: tuple[str, int],
        timeout: float,
        bound: Sequence[BoundAddress],
    ) -> None:
        self.server = server
        self.address = address
        self.bound = bound
        self._acceptor = acceptor
        self._timeout = timeout

    def leave(self) -> None:
        """Have every answer say that it is the last on its connection."""
        self.server.leave()

    async def stop(self) -> None:
        """Take no new connections, and let go those that are open."""
        self.leave()
        await self._acceptor.close()

    async def wait_gone(self) -> None:
        """Wait until no connection is left."""
        await self.server.wait_gone()

    async def see_off(self) -> None:
        """The same; those on which nothing is asked for are ended, which takes GRACE or two."""
        while self.server.doors:
            self.server.hang_up()
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self.wait_gone()

    async def close(self) -> None:
        """Let clients go, stop listening, let running answers end, cut what is left.

        Takes GRACE and the shutdown timeout at most.
        """
        # Closing idle connections outright would lose the requests that are on their way on them.
        self.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self.wait_gone()
        await self.stop()
        await self.finish(self._timeout)

    async def finish(self, timeout: float) -> None:
        """Let running answers end for so many seconds, cut what is left."""
        cut = asyncio.get_running_loop().call_later(timeout, self.server.abort)
        try:
            await self._acceptor.close()
            self.server.end_turned_away()
            self.server.pre_shutdown()
            # aiohttp waits for each handler in its own way, up to twice that; ours cuts it before.
            await self.server.shutdown(self._timeout + GRACE)
            # Answers that are whole, but not yet sent.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout + GRACE):
                    await self.wait_gone()
        finally:
            cut.cancel()


async def listen(server: DoorServer, host: str, port: int, *, shutdown_timeout: float) -> Listener:
    """Listen at `host` ("" and "::": every interface, IPv4 and IPv6) and `port` (0: a free one).

    shutdown_timeout: seconds that running answers get when the listener closes.
    Raises OSError, for a taken port for instance.
    """
    sockets = await _open(host, port)
    bound = sockets[0].getsockname()
    return await serve_on(server, sockets, (bound[0], bound[1]), shutdown_timeout=shutdown_timeout)


async def serve_on(
    server: DoorServer,
    sockets: Sequence[socket.socket],
    address: tuple[str, int],
    *,
    shutdown_timeout: float,
    are_shared: bool = False,
) -> Listener:
    """Take connections from sockets that are bound already, all of them at `address`.

    are_shared: another process, the service manager, holds them too.
    """
    for sock in sockets:
        if sock.family != socket.AF_UNIX:
            _bound_unsent(sock)
        sock.listen(BACKLOG)
    acceptor = Acceptor(server, sockets, are_shared=are_shared)
    acceptor.start()
    bound = [where for sock in sockets if (where := BoundAddress.of(sock)) is not None]
    return Listener(server, acceptor, address, shutdown_timeout, bound)


async def _open(host: str, port: int) -> list[socket.socket]:
    names: tuple[str | None, ...] = (None if host in ("", "::") else host,)
    if is_localhost(host.lower()):  # whatever the name servers say, or fail to
        names = ("127.0.0.1", "::1")
    threads = LookupThreads()
    found = [
        info
        for name in names
        for info in await threads.getaddrinfo(name, port, flags=socket.AI_PASSIVE)
    ]
    if host == "::":  # first in the list: the address that the log shows
        found.sort(key=lambda each: each[0] != socket.AF_INET6)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(_bound(family, (address[0], port, *address[2:])))
            except OSError as error:
                # A kernel without IPv6 may still find addresses of it.
                if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL} or len(found) < 2:
                    raise
            else:
                port = sockets[0].getsockname()[1]
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "no such address on this machine")
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # IPv4 has a socket of its own
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _bound_unsent(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
