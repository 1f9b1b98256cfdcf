"""Accepts connections from listening sockets: all that wait, at each turn of the loop.

uvloop's own servers accept one connection per turn. A turn of a busy gateway takes as long as
everything it serves, so 200 new connections would wait for 200 turns.
The protocol of a connection is the server's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

from cortexd.daemon.tasks import Tasks

log = logging.getLogger(__name__)

# Connections accepted per socket and turn of the loop: more would delay the open ones for longer
# than a few milliseconds.
BATCH: Final = 64
MOST: Final = 4096  # as BATCH, before the socket is closed; the kernel's default for a queue
# Seconds until the next try when no descriptor or memory is left, and between two log lines of it.
PAUSE: Final = 0.25
SILENCE: Final = 60.0

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# The socket itself can't be used. Any other error is about one connection (accept(2)).
_BROKEN: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})


class Acceptor:
    """Accepts connections and makes their transports; `server` makes the protocol of each.

    are_shared: another process holds the sockets too, and will accept the connections that are not
        accepted here.
    """

    def __init__(
        self,
        server: Callable[[], asyncio.BaseProtocol],
        sockets: Sequence[socket.socket],
        *,
        are_shared: bool = False,
    ) -> None:
        self._server = server
        self._sockets = list(sockets)
        self._are_shared = are_shared
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._complained = -SILENCE

    @property
    def is_open(self) -> bool:
        """Return whether it accepts connections."""
        return bool(self._sockets)

    def start(self) -> None:
        """Begin to accept. The sockets listen already, and are closed with the acceptor."""
        for sock in self._sockets:
            sock.setblocking(False)
            self._loop.add_reader(sock, self._accept, sock)

    async def close(self) -> None:
        """Stop accepting.

        Connections that wait in the kernel are accepted first, since closing the socket would reset
        them; not if another process can accept them.
        """
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            self._loop.remove_reader(sock)
            if (timer := self._paused.pop(sock, None)) is not None:
                timer.cancel()
        for sock in sockets:
            if not self._are_shared:
                self._accept(sock, MOST)
            sock.close()
        await self._tasks.wait_ended()

    def _accept(self, sock: socket.socket, most: int = BATCH) -> None:
        for _ in range(most):
            if not self._take(sock):
                break

    def _take(self, sock: socket.socket) -> bool:
        """Accept one connection. Return whether another one may wait."""
        try:
            connection, _ = sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause(sock, error)
                return False
            if error.errno in _BROKEN:
                log.exception("can't accept connections any more")
                self._loop.remove_reader(sock)
                return False
            log.debug("a connection ended before it was accepted: %s", error)
            return True
        connection.setblocking(False)
        self._tasks.spawn("accept", self._open(connection))
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._server, connection)
        except OSError as error:
            log.debug("a connection ended before it was open: %s", error)
            connection.close()

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        """Wait for `PAUSE`: the socket stays readable, so trying again at once would spin."""
        now = self._loop.time()
        if now - self._complained > SILENCE:
            self._complained = now
            log.warning(
                "connections have to wait: %s; raise the limit on open files", error.strerror
            )
        self._loop.remove_reader(sock)
        if sock in self._sockets:
            self._paused[sock] = self._loop.call_later(PAUSE, self._resume, sock)

    def _resume(self, sock: socket.socket) -> None:
        del self._paused[sock]
        self._loop.add_reader(sock, self._accept, sock)
