from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cortexd.daemon.resolver import Address, Resolver
from cortexd.proxy import pool as pool_module
from cortexd.proxy.answer import UpstreamFault
from cortexd.proxy.pool import Origin, Pool, parse_base
from cortexd.proxy.sweeper import Sweeper
from tests.functional import faults
from tests.functional.faults import Close, Read, Stall, black_hole, refusing
from tests.waiting import GUARD, until


@asynccontextmanager
async def pooled(*scripts: faults.Script) -> AsyncIterator[tuple[Pool, Origin, faults.Origin]]:
    server = faults.Origin(*(scripts or ([Stall()],)))
    sweeper = Sweeper()
    pool = Pool(Resolver(), sweeper)
    async with server.running():
        yield pool, parse_base(server.url)[0], server
        pool.close()
        sweeper.close()
        await until(lambda: all(peer.gone.is_set() for peer in server.peers))


@pytest.mark.parametrize(
    ("base", "origin", "path"),
    [
        ("http://h:1", Origin("h", 1, False, "h:1"), ""),
        ("http://h", Origin("h", 80, False, "h"), ""),
        ("https://h/engine/", Origin("h", 443, True, "h"), "/engine"),
        ("http://[fd00::1]:8/a/b", Origin("fd00::1", 8, False, "[fd00::1]:8"), "/a/b"),
    ],
)
def test_a_base_is_an_origin_and_a_path(base: str, origin: Origin, path: str) -> None:
    assert parse_base(base) == (origin, path)


async def test_the_latest_to_come_is_the_first_to_go() -> None:
    async with pooled() as (pool, origin, _):
        one, two = [await pool.connect(origin, 5) for _ in range(2)]
        assert pool.take(origin) is None
        pool.give(one)
        pool.give(two)
        assert repr(pool) == f"<Pool idle {{http://{origin.netloc}: 2}}>"
        assert pool.take(origin) is two
        assert pool.take(origin) is one
        assert pool.take(origin) is None
        two.close()
        one.close()
        assert repr(one) == f"<Connection http://{origin.netloc} closed uses=0>"


async def test_one_that_the_origin_closed_is_forgotten() -> None:
    async with pooled([Read(0), Close()]) as (pool, origin, _):
        connection = await pool.connect(origin, 5)
        pool.give(connection)
        await until(lambda: not connection.is_open)
        assert pool.take(origin) is None


async def test_one_that_was_idle_for_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "IDLE", 0.0)
    async with pooled() as (pool, origin, server):
        connection = await pool.connect(origin, 5)
        pool.give(connection)
        await server.peers[0].wait_gone()
        assert pool.take(origin) is None


async def test_one_that_was_idle_for_too_long_is_not_taken_before_it_is_swept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pooled() as (pool, origin, _):
        connection = await pool.connect(origin, 5)
        pool.give(connection)
        monkeypatch.setattr(pool_module, "IDLE", 0.0)
        assert pool.take(origin) is None
        assert not connection.is_open


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    script = [Read(0), faults.Send(b"HTTP/1.1 200 OK\r\n\r\n"), Stall()]
    async with pooled(script) as (pool, origin, server):
        connection = await pool.connect(origin, 5)
        pool.give(connection)
        await until(lambda: not connection.is_open)
        assert pool.take(origin) is None
        server.peers[0].transport.resume_reading()  # it sees the end, too


async def test_a_refused_connection_says_why() -> None:
    pool = Pool(Resolver(), Sweeper())
    with refusing() as url, pytest.raises(UpstreamFault, match="Connection refused") as fault:
        await pool.connect(parse_base(url)[0], 5)
    assert fault.value.what == "refused"


async def test_a_connection_that_is_not_made_in_time_says_so() -> None:
    pool = Pool(Resolver(), Sweeper())
    with black_hole() as url, pytest.raises(UpstreamFault, match=r"within 0\.2 s") as fault:
        await pool.connect(parse_base(url)[0], 0.2)
    assert fault.value.what == "unreachable"


async def test_address_that_does_not_answer_delays_no_connection_and_is_tried_last_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "_NEXT_ADDRESS", 0.01)
    dead = Address(socket.AF_INET, "127.0.0.2")
    live = Address(socket.AF_INET, "127.0.0.1")

    async def system(name: str) -> list[Address]:
        return [dead, live]

    resolver, sweeper = Resolver(ask_system=system), Sweeper()
    pool = Pool(resolver, sweeper)
    server = faults.Origin([Stall()])
    async with server.running():
        origin = parse_base(server.url)[0]._replace(host="beast")
        with black_hole(dead.ip, origin.port):
            for _ in range(3):
                connection = await pool.connect(origin, 10 * GUARD)
                assert connection.transport.get_extra_info("peername")[0] == live.ip
                connection.close()
                addresses = await resolver.addresses("Beast", origin.port)
                assert addresses == [(live.ip, origin.port), (dead.ip, origin.port)]
        await until(lambda: all(peer.gone.is_set() for peer in server.peers))
    await resolver.close()


async def test_connection_over_ipv6_is_made_where_only_that_listens() -> None:
    pool = Pool(Resolver(), Sweeper())
    server = await asyncio.start_server(lambda _, writer: writer.close(), "::1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = await pool.connect(Origin("localhost", port, False, f"localhost:{port}"), 10)
        assert connection.transport.get_extra_info("peername")[0] == "::1"
        connection.close()
        await asyncio.sleep(0)


async def test_refusal_by_every_address_is_one_reason() -> None:
    pool = Pool(Resolver(), Sweeper())
    with refusing() as url, pytest.raises(UpstreamFault) as fault:
        await pool.connect(parse_base(url)[0]._replace(host="localhost"), 5)
    assert str(fault.value).endswith(": Connection refused")


async def test_lookup_that_takes_too_long_is_told_from_a_connection_that_does() -> None:
    async def silent(name: str) -> list[Address]:
        await asyncio.Event().wait()
        return []

    resolver = Resolver(ask_system=silent)
    pool = Pool(resolver, Sweeper())
    with pytest.raises(UpstreamFault, match=r"no address of beast within 0\.05 s") as fault:
        await pool.connect(Origin("beast", 80, False, "beast"), 0.05)
    assert fault.value.what == "unreachable"
    await resolver.close()


async def test_a_name_that_is_none_is_a_refusal() -> None:
    pool = Pool(Resolver(), Sweeper())
    with pytest.raises(UpstreamFault) as fault:
        await pool.connect(Origin("x" * 300, 80, False, "x"), 5)
    assert fault.value.what == "refused"


async def test_a_plain_origin_where_tls_is_expected_is_a_refusal() -> None:
    async with pooled([Read(1), faults.Send(b"HTTP/1.1 400 Bad\r\n\r\n"), Close()]) as (
        pool,
        origin,
        _,
    ):
        with pytest.raises(UpstreamFault) as fault:
            await pool.connect(origin._replace(is_tls=True), 5)
        assert fault.value.what == "refused"
        assert isinstance(fault.value.__cause__, (ssl.SSLError, ConnectionError, OSError))


async def test_a_host_that_died_is_noticed_by_the_kernel() -> None:
    async with pooled() as (pool, origin, _):
        connection = await pool.connect(origin, 5)
        sock = connection.transport.get_extra_info("socket")
        import socket

        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        connection.close()
        await asyncio.sleep(0)
