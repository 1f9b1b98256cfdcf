"""Accepting connections: many at one turn of the loop, few descriptors, and the end."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest

from cortexd.proxy import acceptor as accepting
from cortexd.proxy.acceptor import BATCH, Acceptor
from tests.waiting import until


class Greeter(asyncio.Protocol):
    """Says hello, and stays."""

    def __init__(self, made: list[Greeter]) -> None:
        made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(b"hello")


class Accepted:
    """An acceptor at a socket of its own, and the connections it has made."""

    def __init__(self, sock: socket.socket, *, is_shared: bool = False) -> None:
        self.made: list[Greeter] = []
        self.address = sock.getsockname()
        self.family = sock.family
        self.acceptor = Acceptor(lambda: Greeter(self.made), [sock], are_shared=is_shared)
        self.acceptor.start()

    def connect(self, stack: ExitStack) -> socket.socket:
        """Return a connection that the kernel holds; the loop does not run meanwhile."""
        sock = stack.enter_context(socket.socket(self.family))
        sock.setblocking(False)
        sock.connect_ex(self.address)
        return sock

    async def close(self) -> None:
        await self.acceptor.close()
        for greeter in self.made:
            greeter.transport.abort()


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    return sock


async def heard(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, 100)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Allow only so many more descriptors in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def turn() -> None:
    """Run one turn of the loop, in which it polls its sockets."""
    await asyncio.sleep(0)


async def test_a_burst_of_connections_is_accepted_in_a_few_turns_of_the_loop() -> None:
    accepted = Accepted(listening())
    with ExitStack() as stack:
        clients = [accepted.connect(stack) for _ in range(200)]
        turns = 0
        while len(accepted.made) < len(clients):
            await turn()
            turns += 1
            assert turns < 20  # one connection per turn would take 200
        assert await heard(clients[-1]) == b"hello"
        await accepted.close()


async def test_a_turn_accepts_a_bounded_number() -> None:
    accepted = Accepted(listening())
    with ExitStack() as stack:
        for _ in range(2 * BATCH + 1):
            accepted.connect(stack)
        sizes = []
        while len(accepted.made) < 2 * BATCH + 1:
            before = len(accepted.made)
            await turn()
            sizes.append(len(accepted.made) - before)
        assert max(sizes) == BATCH
        await accepted.close()


async def test_a_socket_file_is_accepted_from_too(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    accepted = Accepted(sock)
    with ExitStack() as stack:
        assert await heard(accepted.connect(stack)) == b"hello"
        await accepted.close()


async def test_acceptor_pauses_without_descriptors_and_logs_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 3600)  # ended by hand
    accepted = Accepted(listening())
    tries = 0
    accept = accepted.acceptor._take

    def count(sock: socket.socket) -> bool:
        nonlocal tries
        tries += 1
        return accept(sock)

    monkeypatch.setattr(accepted.acceptor, "_take", count)
    with ExitStack() as stack:
        clients = [accepted.connect(stack) for _ in range(5)]
        with descriptors_left(2):
            await until(lambda: len(accepted.made) == 2)
            (sock,) = accepted.acceptor._paused
            accepted.acceptor._resume(sock)  # too early
            await until(lambda: bool(accepted.acceptor._paused))
            before = tries
            for _ in range(100):
                await turn()
            assert tries == before
            assert len(accepted.made) == 2
        accepted.acceptor._resume(sock)
        for client in clients:
            assert await heard(client) == b"hello"
        await accepted.close()
    (record,) = caplog.records
    assert record.getMessage() == (
        "connections have to wait: Too many open files; raise the limit on open files"
    )


async def test_connections_that_wait_in_the_kernel_are_accepted_before_the_end() -> None:
    accepted = Accepted(listening())
    with ExitStack() as stack:
        clients = [accepted.connect(stack) for _ in range(100)]
        await accepted.acceptor.close()
        assert not accepted.acceptor.is_open
        assert len(accepted.made) == 100
        for client in clients:
            assert await heard(client) == b"hello"
        assert accepted.connect(stack).connect_ex(accepted.address) != 0
        await accepted.close()


async def test_connections_at_a_shared_socket_are_left_to_the_other_process() -> None:
    sock = listening()
    with sock.dup() as other, ExitStack() as stack:
        accepted = Accepted(sock, is_shared=True)
        client = accepted.connect(stack)
        await accepted.acceptor.close()
        assert accepted.made == []
        successor = Accepted(other.dup())
        assert await heard(client) == b"hello"
        await successor.close()


async def test_closing_while_it_waits_for_descriptors_ends_it() -> None:
    accepted = Accepted(listening())
    with ExitStack() as stack:
        accepted.connect(stack)
        with descriptors_left(0):
            await until(lambda: bool(accepted.acceptor._paused))
            await accepted.acceptor.close()
        assert not accepted.acceptor._paused
        await accepted.close()


async def test_a_connection_that_ended_before_it_was_accepted_costs_the_others_nothing() -> None:
    accepted = Accepted(listening())
    with ExitStack() as stack:
        leaving = accepted.connect(stack)
        staying = accepted.connect(stack)
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        leaving.close()
        assert await heard(staying) == b"hello"
        await accepted.close()
