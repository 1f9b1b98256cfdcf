"""Sockets that the service manager holds open and hands over (sd_listen_fds): while no process
takes connections from them, these queue in the kernel, and none is refused over a restart."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

FIRST: Final = 3  # the descriptor after stderr


class BadSocket(Exception):
    """Something was handed over that can't be listened on; the message says what to change."""


def inherited(
    environ: MutableMapping[str, str] = os.environ, *, first: int = FIRST
) -> dict[str, list[socket.socket]]:
    """The sockets that are meant for this process, by name (`FileDescriptorName=`); "" when they
    have none. A second call finds none, and neither does a child process.

    Raises BadSocket.
    """
    told = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if told["LISTEN_PID"] != str(os.getpid()) or not told["LISTEN_FDS"].isdecimal():
        return {}
    count = int(told["LISTEN_FDS"])
    names = told["LISTEN_FDNAMES"].split(":") + [""] * count
    found: dict[str, list[socket.socket]] = {}
    for descriptor, name in zip(range(first, first + count), names, strict=False):
        os.set_inheritable(descriptor, False)
        found.setdefault(name, []).append(_stream(descriptor, name))
    return found


def _stream(descriptor: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise BadSocket(f"descriptor {descriptor} ({name}) is no socket: {error}") from error
    if sock.type != socket.SOCK_STREAM or not listens:
        sock.close()
        raise BadSocket(
            f"descriptor {descriptor} ({name}) is no listening stream socket; use ListenStream= in "
            "the socket unit, with Accept=no"
        )
    sock.setblocking(False)
    return sock
