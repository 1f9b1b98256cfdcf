"""Opens what a configuration names: host:port, or a socket in the file system; and opens it anew,
without refusing anybody, when the configuration names another one."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from cortexd.config import gateway as config
from cortexd.config.address import UNIX, parse_listen, unix_path
from cortexd.daemon.tasks import Tasks
from cortexd.proxy.listen import BACKLOG, GRACE, Listener, listen, serve_on
from cortexd.proxy.server import DoorServer

log = logging.getLogger(__name__)

MODE = 0o660  # of a socket file: its owner and its group may operate the gateway

Key = Literal["listen", "admin_listen", "metrics_listen"]
KEYS: Final[tuple[Key, ...]] = ("listen", "metrics_listen", "admin_listen")


class CantListen(OSError):
    """The message names the key and says why."""


class Listeners:
    """Every listener of one gateway.

    serve: makes the server that stands behind a key. inherited: sockets that the service manager
    has opened, by key; what the configuration says of these keys does not count.
    """

    def __init__(
        self,
        serve: Callable[[Key], DoorServer],
        inherited: Mapping[Key, Sequence[socket.socket]],
    ) -> None:
        self._serve = serve
        self._inherited = inherited
        self._open: dict[Key, Listener] = {}
        self._leaving: set[Listener] = set()
        self._tasks = Tasks()

    def __getitem__(self, key: Key) -> Listener | None:
        """What listens for that key, if anything does."""
        return self._open.get(key)

    @property
    def all(self) -> list[Listener]:
        """Every one that has connections, those that take no new ones too."""
        return [*self._open.values(), *self._leaving]

    def is_own(self, ip: str, port: int) -> bool:
        """Return whether a connection to this address would arrive at a listener of ours."""
        return any(where.accepts(ip, port) for listener in self.all for where in listener.bound)

    def are_inherited(self, key: Key) -> bool:
        """Whether the service manager says where it listens."""
        return key in self._inherited

    async def open(self, settings: config.Gateway) -> None:
        """Open them all, or none. Raises CantListen."""
        nothing = config.Gateway(listen="", admin_listen="", metrics_listen=None)
        self.replace(await self.prepare(nothing, settings))

    async def prepare(
        self, before: config.Gateway, after: config.Gateway
    ) -> dict[Key, Listener | None]:
        """Open what listens somewhere else after than before; None: nowhere any more.

        Nothing changes until they are put in place with `replace`. Raises CantListen.
        """
        opened: dict[Key, Listener | None] = {}
        try:
            for key in KEYS:
                where = getattr(after, key)
                if key in self._inherited:
                    if key not in self._open:
                        opened[key] = await self._take_over(key, after.shutdown_timeout)
                elif where != getattr(before, key):
                    opened[key] = await self._listen(key, where, after) if where else None
        except OSError:
            for listener in filter(None, opened.values()):
                self._let_go(listener)
            raise
        return opened

    def replace(self, opened: Mapping[Key, Listener | None]) -> None:
        """Put them in place; those that stood there leave, their answers go on to their end."""
        for key, listener in opened.items():
            if (before := self._open.pop(key, None)) is not None:
                self._let_go(before)
            if listener is not None:
                self._open[key] = listener

    async def close(self) -> None:
        """Look after those that leave no more; whoever stops the gateway closes all of them."""
        await self._tasks.close()

    def _let_go(self, listener: Listener) -> None:
        self._leaving.add(listener)
        self._tasks.spawn(f"let go of {spelt(listener.address)}", self._see_off(listener))

    async def _see_off(self, listener: Listener) -> None:
        """As at a stop, but that nothing is cut."""
        listener.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await listener.wait_gone()
        await listener.stop()
        await listener.see_off()
        await listener.finish(GRACE)
        self._leaving.discard(listener)
        log.info("nothing uses %s any more", spelt(listener.address))

    async def _listen(self, key: Key, where: str, settings: config.Gateway) -> Listener:
        timeout = settings.shutdown_timeout
        return await open_listener(self._serve(key), key, where, shutdown_timeout=timeout)

    async def _take_over(self, key: Key, shutdown_timeout: float) -> Listener:
        sockets = self._inherited[key]
        name = sockets[0].getsockname()
        address = (name, 0) if isinstance(name, str) else (name[0], name[1])
        return await serve_on(
            self._serve(key),
            sockets,
            address,
            shutdown_timeout=shutdown_timeout,
            are_shared=True,
        )


async def open_listener(
    server: DoorServer, key: str, where: str, *, shutdown_timeout: float
) -> Listener:
    """Listen at `where`, the value of `key`. A socket file's listener has the address (path, 0).

    Raises CantListen.
    """
    try:
        if (path := unix_path(where)) is not None:
            sock = await asyncio.to_thread(_bound, path)
            return await serve_on(server, [sock], (path, 0), shutdown_timeout=shutdown_timeout)
        return await listen(server, *parse_listen(where), shutdown_timeout=shutdown_timeout)
    except OSError as error:
        raise CantListen(f"can't listen on {where} ([gateway] {key}): {error}") from error


def spelt(address: tuple[str, int]) -> str:
    """An address as the configuration would have it."""
    host, port = address
    if host.startswith("/"):
        return UNIX + host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def keyed(named: Mapping[str, list[socket.socket]]) -> dict[Key, list[socket.socket]]:
    """Sockets of the service manager's by what they are for: `admin` and `metrics` in their names
    say so, any other is what clients talk to."""
    found: dict[Key, list[socket.socket]] = {}
    for name, sockets in named.items():
        key: Key = "listen"
        if "admin" in name:
            key = "admin_listen"
        elif "metrics" in name:
            key = "metrics_listen"
        found.setdefault(key, []).extend(sockets)
    return found


def _bound(path: str) -> socket.socket:
    """A socket file is left behind by whoever was killed, and then it is in the way."""
    file = Path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(file):
                raise
            file.unlink()
            sock.bind(path)
        file.chmod(MODE)
        sock.listen(BACKLOG)  # from here on it answers: not before its mode is what it should be
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_stale(file: Path) -> bool:
    if not stat.S_ISSOCK(file.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(file))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
