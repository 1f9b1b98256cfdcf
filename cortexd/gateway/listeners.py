"""Opens what a configuration names: host:port, or a socket in the file system."""

from __future__ import annotations

import asyncio
import errno
import socket
import stat
from pathlib import Path

from cortexd.config.address import UNIX, parse_listen, unix_path
from cortexd.proxy.door import DoorServer
from cortexd.proxy.listen import BACKLOG, Listener, listen, serve_on

MODE = 0o660  # of a socket file: its owner and its group may operate the gateway


class CantListen(OSError):
    """The message names the key and says why."""


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
