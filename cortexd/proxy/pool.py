"""Connections to the origins: the idle ones for another use, new ones when there is none.

The bookkeeping is synchronous and costs the same however many there are.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import takewhile
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from aiohappyeyeballs import AddrInfoType, start_connection

from cortexd.daemon.bound import socket_address
from cortexd.daemon.resolver import Resolver
from cortexd.proxy.answer import UpstreamFault
from cortexd.proxy.connection import Connection
from cortexd.proxy.sweeper import Sweeper

# Seconds until the next address is tried beside one that does not answer (RFC 8305, section 5).
_NEXT_ADDRESS: Final = 0.25
IDLE: Final = 4.0  # seconds; several engines close theirs after five
# A host that lost its power says nothing: the kernel asks, and gives up within a minute.
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
)


class Origin(NamedTuple):
    """The other end of a connection. `netloc`: as the Host field spells it.

    trusted: checks its certificate; None: the system's authorities do. A connection is reused only
        under the same `trusted`.
    """

    host: str
    port: int
    is_tls: bool
    netloc: str
    trusted: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.netloc}"


@lru_cache(maxsize=4096)
def parse_base(base: str) -> tuple[Origin, str]:
    """`http://host:port/path` → the origin and the path, which has no trailing slash."""
    parts = urlsplit(base)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    return Origin(parts.hostname or "", port, is_tls, parts.netloc), parts.path.rstrip("/")


def never_own(ip: str, port: int) -> bool:
    """Return False, for a process whose upstreams can't lead back to it."""
    return False


class Pool:
    """Idle connections to upstreams.

    is_own: returns whether an IP address and port are a listener of this process, to which no
        connection is made.
    """

    def __init__(
        self,
        resolver: Resolver,
        sweeper: Sweeper,
        is_own: Callable[[str, int], bool] = never_own,
    ) -> None:
        self._resolver = resolver
        self._sweeper = sweeper
        self._system: ssl.SSLContext | None = None  # the system's authorities, once read
        self._is_own = is_own
        self._loop = asyncio.get_running_loop()
        # Of each origin in the order in which they were given.
        self._idle: dict[object, dict[Connection, None]] = {}

    def __repr__(self) -> str:
        idle = ", ".join(f"{origin}: {len(kept)}" for origin, kept in self._idle.items() if kept)
        return f"<Pool idle {{{idle}}}>"

    def take(self, origin: Origin) -> Connection | None:
        """The connection that was idle for the shortest time, if there is a fresh one."""
        kept = self._idle.get(origin)
        oldest = self._loop.time() - IDLE
        while kept:
            connection, _ = kept.popitem()
            if connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def connect(self, origin: Origin, timeout: float) -> Connection:
        """Open a new connection within `timeout` seconds.

        Raises UpstreamFault (refused, unreachable, own).
        """
        missing = f"address of {origin.host}"
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolver.addresses(origin.host, origin.port)
                missing = "connection"
                connection = await self._dial(origin, addresses)
        except TimeoutError as error:
            raise UpstreamFault("unreachable", f"no {missing} within {timeout:g} s") from error
        except (OSError, ValueError) as error:  # ValueError: no name that could be looked up
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UpstreamFault("refused", f"can't connect to {origin.netloc}: {words}") from error
        _keep_alive(connection.transport)
        return connection

    def give(self, connection: Connection) -> None:
        """Keep it for another use, if it still stands."""
        if not connection.is_open:
            return
        connection.idle_since = self._loop.time()
        kept = self._idle.get(connection.origin)
        if kept is None:
            kept = self._idle[connection.origin] = {}
            self._sweeper.watch(self)
        kept[connection] = None

    def lost(self, connection: Connection) -> None:
        """Forget one that was closed while it was idle."""
        kept = self._idle.get(connection.origin)
        if kept is not None:
            kept.pop(connection, None)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long."""
        for origin, kept in list(self._idle.items()):
            for connection in list(takewhile(lambda idle: idle.idle_since <= now - IDLE, kept)):
                del kept[connection]
                connection.close()
            if not kept:
                del self._idle[origin]
        if not self._idle:
            self._sweeper.forget(self)

    def close(self) -> None:
        """Close every idle connection."""
        for kept in self._idle.values():
            for connection in kept:
                connection.close()
        self._idle.clear()
        self._sweeper.forget(self)

    async def _dial(self, origin: Origin, found: Sequence[tuple[str, int]]) -> Connection:
        """Connect to the first address that takes it (Happy Eyeballs, RFC 8305)."""
        addresses = [address for address in found if not self._is_own(*address)]
        if not addresses:
            raise UpstreamFault("own", f"{origin.netloc} is an address of this gateway itself")
        tls = (origin.trusted or await self._context()) if origin.is_tls else None
        server_hostname = origin.host if origin.is_tls else None
        if len(addresses) == 1:
            ip, port = addresses[0]
            _, connection = await self._loop.create_connection(
                lambda: Connection(origin, self),
                ip,
                port,
                ssl=tls,
                server_hostname=server_hostname,
            )
            return connection
        sock, ip = await self._race(addresses)
        self._resolver.prefer(origin.host, ip)
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(origin, self),
                sock=sock,
                ssl=tls,
                server_hostname=server_hostname,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def _race(self, addresses: Sequence[tuple[str, int]]) -> tuple[socket.socket, str]:
        """Return a connected socket and its IP; each address is tried shortly after the one before.

        Raises OSError.
        """
        infos: list[AddrInfoType] = []
        ips: dict[object, str] = {}
        for ip, port in addresses:
            family, where = socket_address(ip, port)
            infos.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where))
            ips[where] = ip
        try:
            sock = await start_connection(
                infos, happy_eyeballs_delay=_NEXT_ADDRESS, loop=self._loop
            )
        except OSError as error:
            # One for all of them; its text lists each with its number.
            if error.errno is None:
                raise
            raise OSError(error.errno, os.strerror(error.errno)) from error
        except RuntimeError as error:  # from uvloop
            raise OSError(None, str(error)) from error
        return sock, ips.get(sock.getpeername(), addresses[0][0])

    async def _context(self) -> ssl.SSLContext:
        if self._system is None:  # a store of hundreds of certificates
            self._system = await asyncio.to_thread(ssl.create_default_context)
        return self._system


def _keep_alive(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    for level, name, value in _KEEPALIVE:
        with suppress(OSError, AttributeError):
            sock.setsockopt(level, getattr(socket, name), value)
