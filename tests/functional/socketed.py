"""`cortexd serve` as a service manager starts it: with sockets that are held open for it, and with
somebody to notify."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.waiting import GUARD

# Puts the sockets where the protocol wants them, and becomes the daemon.
_LAUNCHER = """
import os, sys
descriptors, command = sys.argv[1].split(","), sys.argv[2:]
for number, descriptor in enumerate(filter(None, descriptors)):
    os.dup2(int(descriptor), 100 + number)
for number in range(len(list(filter(None, descriptors)))):
    os.dup2(100 + number, 3 + number)
    os.close(100 + number)
for name in ("LISTEN_PID", "WATCHDOG_PID"):
    if name in os.environ:
        os.environ[name] = str(os.getpid())
os.execv(command[0], command)
"""


class Service:
    """One process. `log`: the file with what it says."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    async def ended(self) -> int:
        """Its exit status."""
        async with asyncio.timeout(GUARD):
            return await self.process.wait()


@asynccontextmanager
async def service(
    file: Path, log: Path, sockets: Mapping[str, socket.socket] | None = None, **environment: str
) -> AsyncIterator[Service]:
    """`cortexd serve` with these sockets, by name; killed at the end if it has not ended."""
    handed = sockets or {}
    descriptors = [sock.fileno() for sock in handed.values()]
    if handed:
        environment |= {
            "LISTEN_PID": "self",
            "LISTEN_FDS": str(len(handed)),
            "LISTEN_FDNAMES": ":".join(handed),
        }
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _LAUNCHER, ",".join(map(str, descriptors))),
            *(sys.executable, "-m", "cortexd", "serve", "--config", str(file)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
            pass_fds=descriptors,
        )
    try:
        yield Service(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Manager:
    """The service manager's end of NOTIFY_SOCKET. `heard`: every message so far."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.path = path
        self.heard: list[str] = []
        self._sock = sock

    async def hears(self, start: str) -> str:
        """The next message that begins like that; what comes before it is kept in `heard`."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(GUARD):
            while True:
                message = (await loop.sock_recv(self._sock, 65536)).decode()
                self.heard.append(message)
                if message.startswith(start):
                    return message


@asynccontextmanager
async def manager(place: Path) -> AsyncIterator[Manager]:
    """One that listens."""
    path = f"{place}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.setblocking(False)
        yield Manager(sock, path)


@asynccontextmanager
async def held_open() -> AsyncIterator[socket.socket]:
    """A listening socket of the manager's."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as sock:
        yield sock
