"""Listening sockets: where, how, and closing them without losing a request."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
from aiohttp import web

from cortexd.proxy import listen as listening
from cortexd.proxy.listen import Listener, connection_cap, listen
from cortexd.proxy.server import DoorServer
from tests.functional.raw import Client, answered, connected
from tests.proxy.site import Site, held, open_site
from tests.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def opened(host: str, port: int = 0) -> Listener:
    site = Site(None)
    server = DoorServer(site.handle, site.refuse, max_body=1, max_connections=10)
    return await listen(server, host, port, shutdown_timeout=0.1)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("::", ["127.0.0.1", "::1"]),
        ("", ["127.0.0.1", "::1"]),
    ],
)
async def test_it_listens_where_it_is_told_to(host: str, reached: list[str]) -> None:
    if "::1" in reached and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    listener = await opened(host)
    try:
        for address in reached:
            loop = asyncio.get_running_loop()
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family) as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, (address, listener.address[1]))
                await loop.sock_sendall(sock, LAST)
                assert (await loop.sock_recv(sock, 100)).startswith(b"HTTP/1.1 200 ")
    finally:
        await listener.close()


async def test_the_ipv6_wildcard_is_shown_as_it_is_configured() -> None:
    listener = await opened("::")
    assert listener.address[0] == "::"
    await listener.close()


async def test_a_taken_port_is_an_error_that_says_so_and_leaves_nothing_open() -> None:
    first = await opened("127.0.0.1")
    try:
        with pytest.raises(OSError, match="in use"):
            await opened("127.0.0.1", first.address[1])
    finally:
        await first.close()
    again = await opened("127.0.0.1", first.address[1])
    await again.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
async def test_an_address_that_is_not_ours_is_an_error(host: str) -> None:
    with pytest.raises(OSError):
        await opened(host)


async def test_what_a_stalled_client_hides_in_the_kernel_is_bounded() -> None:
    async with open_site() as site, connected(site.address):
        await until(lambda: bool(site.server.doors) and site.door.transport is not None)
        assert site.door.transport is not None
        sock = site.door.transport.get_extra_info("socket")
        bound = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert bound == listening.UNSENT
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_closing_loses_no_request_of_clients_that_keep_their_connection() -> None:
    kept: list[int] = []

    async def ask(client: Client) -> None:
        while b"Connection: close" not in client.received:
            heard = await client.ask(GET)
            assert (heard.status, heard.complete, heard.body) == (200, True, b"hello")
            kept.append(1)

    async with open_site() as site:
        places = [connected(site.address) for _ in range(20)]
        clients = [await place.__aenter__() for place in places]
        asking = [asyncio.ensure_future(ask(client)) for client in clients]
        await until(lambda: len(kept) > 100)
        await site.listener.close()
        await asyncio.gather(*asking)
        for place in places:
            await place.__aexit__(None, None, None)


async def test_connections_that_wait_in_the_kernel_are_answered_before_the_end() -> None:
    async with open_site(max_connections=200) as site:
        with ExitStack() as stack:
            socks = [stack.enter_context(socket.socket()) for _ in range(100)]
            for sock in socks:
                sock.setblocking(False)
                sock.connect_ex(site.address)
                sock.send(GET)
            await site.listener.stop()
            for sock in socks:
                heard = await Client(sock).read_answer("GET")
                assert (heard.status, heard.is_last, heard.body) == (200, True, b"hello")


async def test_closing_waits_for_answers_that_are_on_their_way() -> None:
    hold, is_let_go = held(b"whole")
    async with open_site(hold) as site, connected(site.address) as client:
        site.listener._timeout = 3600
        await client.send(GET)
        await until(lambda: bool(site.handled))
        closing = asyncio.ensure_future(site.listener.close())
        await until(lambda: not site.listener._acceptor.is_open)
        assert not closing.done()
        is_let_go.set()
        await client.read_rest()
        assert client.received.endswith(b"whole")
        await closing


async def test_closing_cuts_what_does_not_end_in_time() -> None:
    async def hang(request: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with open_site(hang) as site, connected(site.address) as client:
        await client.send(GET)
        await until(lambda: bool(site.handled))
        await site.listener.close()
        assert site.cancelled.is_set()
        assert not site.server.doors
        assert await client.read_rest() == b""


async def test_closing_does_not_wait_for_a_client_that_takes_nothing() -> None:
    async def large(request: web.BaseRequest) -> web.Response:
        return web.Response(body=bytes(32 << 20))

    async with (
        open_site(large) as site,
        connected(site.address, receive_buffer=4096) as client,
    ):
        await client.send(GET)
        await until(lambda: bool(site.handled))
        await site.listener.close()
        assert not site.server.doors


async def test_a_connection_without_a_request_does_not_delay_the_end_for_long() -> None:
    async with open_site() as site, connected(site.address) as client:
        await until(lambda: bool(site.server.doors))
        await site.listener.close()
        assert not site.server.doors
        assert await client.read_rest() == b""
        with pytest.raises(OSError):
            await answered(site.address, GET)


def test_the_cap_leaves_room_for_an_upstream_connection_each_and_for_ourselves() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert connection_cap() == (hard - 256) // 2
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [
        (300, 2256, "1000"),
        (768, 768, "256"),
        (767, 767, "at most 767 files may be open, 768 are needed; raise the limit"),
    ],
)
def test_the_limit_is_raised_as_far_as_it_goes_and_too_low_a_one_is_an_error(
    soft: int, hard: int, said: str
) -> None:
    program = (
        "import resource\n"
        "from cortexd.proxy.listen import TooFewDescriptors, connection_cap\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "try:\n    print(connection_cap())\n"
        "except TooFewDescriptors as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.startswith(said), run.stderr


async def test_whoever_leaves_sees_off_the_idle_and_waits_for_the_busy() -> None:
    hold, is_let_go = held(b"whole")
    async with (
        open_site(hold) as site,
        connected(site.address) as busy,
        connected(site.address) as idle,
    ):
        await busy.send(GET)
        await until(lambda: bool(site.handled) and len(site.server.doors) == 2)
        site.listener.leave()
        await site.listener.stop()
        seeing_off = asyncio.ensure_future(site.listener.see_off())
        assert await idle.read_rest() == b""
        assert not seeing_off.done()
        is_let_go.set()
        heard = await busy.read_answer("GET")
        assert (heard.body, heard.is_last) == (b"whole", True)  # though it was asked before
        await seeing_off
