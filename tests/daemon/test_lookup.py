"""Lookups that no name server answers: they delay neither each other nor the end of the process."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cortexd.daemon import lookup
from cortexd.daemon.lookup import LookupThreads
from cortexd.daemon.resolver import Resolver
from cortexd.proxy.browser import is_address
from cortexd.proxy.listen import listen
from cortexd.proxy.server import DoorServer
from tests.proxy.site import Site
from tests.waiting import GUARD, until

real_getaddrinfo = socket.getaddrinfo
INFO = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))


class DeadNameServer:
    """getaddrinfo on a host whose name server does not answer: only `beast` is in /etc/hosts."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[Any] = []

    def __call__(self, host: Any, *args: Any, **options: Any) -> Any:
        self.asked.append(host)
        if host == "beast":
            return [INFO]
        if host is None or is_address(host):
            return real_getaddrinfo(host, *args, **options)
        self.answer.wait(GUARD)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeadNameServer]:
    dead = DeadNameServer()
    monkeypatch.setattr(socket, "getaddrinfo", dead)
    yield dead
    dead.answer.set()


async def test_lookup_is_answered_while_fifty_others_are_not(name_server: DeadNameServer) -> None:
    resolver = Resolver()
    names = [f"dead-{number}" for number in range(50)]
    waiting = [asyncio.ensure_future(resolver.addresses(name, 80)) for name in names]
    await until(lambda: len(name_server.asked) == 50)
    async with asyncio.timeout(GUARD / 2):  # the others end after all of it
        assert await resolver.addresses("beast", 80) == [("10.0.0.1", 80)]
        await asyncio.to_thread(bool)  # the loop's own threads are free, too
    assert not any(each.done() for each in waiting)
    name_server.answer.set()
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert "Temporary failure in name resolution" in str(each)
    await resolver.close()


async def test_lookups_have_a_bound_beyond_which_they_fail_at_once(
    name_server: DeadNameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "MAX_THREADS", 2)
    threads = LookupThreads()
    waiting = [asyncio.ensure_future(threads.getaddrinfo(name)) for name in ("dead-1", "dead-2")]
    await until(lambda: threads.running == 2)
    with pytest.raises(OSError, match="2 lookups have no answer; check the name servers"):
        await threads.getaddrinfo("beast")
    waiting[0].cancel()
    name_server.answer.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    await until(lambda: threads.running == 0)
    assert list(await threads.getaddrinfo("beast")) == [INFO]


async def test_missing_thread_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads = LookupThreads()
    with pytest.raises(OSError, match="can't start new thread; raise TasksMax="):
        await threads.getaddrinfo("beast")
    assert threads.running == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
async def test_listener_opens_while_no_name_server_answers(
    host: str, name_server: DeadNameServer
) -> None:
    site = Site(None)
    server = DoorServer(site.handle, site.refuse, max_body=1, max_connections=10)
    async with asyncio.timeout(GUARD):
        listener = await listen(server, host, 0, shutdown_timeout=0.1)
        await listener.close()


ENDS = """
import asyncio, socket, threading, time
from cortexd.daemon import loop
from cortexd.daemon.resolver import Resolver

def hang(*args, **options):  # a name server that never answers the system's resolver
    asked.release()
    time.sleep(3600)

asked = threading.Semaphore(0)
socket.getaddrinfo = hang

async def main():
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # and one that never answers c-ares
    silent.bind(("127.0.0.1", 0))
    resolver = Resolver(nameservers=["127.0.0.1:%d" % silent.getsockname()[1]])
    names = ["beast", "attic", *(f"gpu-{n}.internal" for n in range(20))]
    lookups = [asyncio.ensure_future(resolver.addresses(name, 80)) for name in names]
    await asyncio.to_thread(silent.recv, 512)
    for _ in ("beast", "attic"):
        assert await asyncio.to_thread(asked.acquire, timeout=30)
    assert await resolver.addresses("localhost", 80) == [("127.0.0.1", 80), ("::1", 80)]
    assert await resolver.addresses("127.0.0.2", 80) == [("127.0.0.2", 80)]
    await resolver.close()
    for each in await asyncio.gather(*lookups, return_exceptions=True):
        assert "the resolver is closed" in str(each), each
    print("closed", flush=True)

loop.run(main())
print("ended", flush=True)
"""


def test_process_ends_though_no_lookup_was_answered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=GUARD, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["closed", "ended"]
