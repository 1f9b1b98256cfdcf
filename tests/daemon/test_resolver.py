from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from cortexd.daemon import resolver as resolver_module
from cortexd.daemon.resolver import MAX_NAMES, PATIENCE, RETRY, TTL, Address, Resolver
from tests.waiting import GUARD, until


class FakeDns(asyncio.DatagramProtocol):
    """A DNS server: `hosts` (name → IPv4) is all it knows; it answers while `answers` is true."""

    def __init__(self) -> None:
        self.hosts: dict[str, str] = {}
        self.asked: list[str] = []
        self.answers = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.address = "{}:{}".format(*transport.get_extra_info("sockname"))

    def datagram_received(self, query: bytes, client: tuple[str, int]) -> None:
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode())
            at += 1 + size
        name, kind = ".".join(labels), query[at + 2]
        question = query[12 : at + 5]
        if kind == 1:  # A; the other question is for IPv6
            self.asked.append(name)
        if not self.answers:
            return
        ip = self.hosts.get(name)
        flags = b"\x81\x80" if ip else b"\x81\x83"  # 3: no such name
        record = b""
        if ip and kind == 1:  # a TTL of 0: c-ares shall ask every time
            record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(ip)
        counts = b"\0\1" + (b"\0\1" if record else b"\0\0") + b"\0\0\0\0"
        self.transport.sendto(query[:2] + flags + counts + question + record, client)


class System:
    """A system that knows `hosts`; what it is asked waits for `go`."""

    def __init__(self, **hosts: str) -> None:
        self.hosts = {name.replace("_", "."): ip for name, ip in hosts.items()}
        self.asked: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, name: str) -> Iterable[Address]:
        self.asked.append(name)
        await self.go.wait()
        if name not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [Address(socket.AF_INET, self.hosts[name])]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def resolving(
    system: System | None = None, clock: Clock | None = None
) -> AsyncIterator[tuple[Resolver, FakeDns, System, Clock]]:
    transport, dns = await asyncio.get_running_loop().create_datagram_endpoint(
        FakeDns, local_addr=("127.0.0.1", 0)
    )
    system, clock = system or System(), clock or Clock()
    resolver = Resolver(nameservers=[dns.address], ask_system=system, now=clock)
    try:
        yield resolver, dns, system, clock
    finally:
        await resolver.close()
        transport.close()


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "::ffff:10.0.0.1", "fe80::1%lo", "10.255.0.7"])
async def test_an_ip_needs_no_lookup(ip: str) -> None:
    async with resolving() as (resolver, dns, system, _):
        assert await resolver.addresses(ip, 80) == [(ip, 80)]
        assert not dns.asked
        assert not system.asked


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "a.1", "1.2.3.4.5", "127.1."]
)
async def test_an_ip_that_only_inet_aton_understands_is_no_host(host: str) -> None:
    async with resolving() as (resolver, dns, system, _):
        with pytest.raises(OSError, match="no canonical IP address"):
            await resolver.addresses(host, 80)
        assert not dns.asked
        assert not system.asked


async def test_dns_is_asked_first() -> None:
    async with resolving(System(beast_test="10.0.0.2")) as (resolver, dns, system, _):
        dns.hosts["beast.test"] = "10.0.0.1"
        assert await resolver.addresses("beast.test", 80) == [("10.0.0.1", 80)]
        assert not system.asked


async def test_what_dns_does_not_know_the_system_is_asked() -> None:
    async with resolving(System(beast_test="10.0.0.2")) as (resolver, dns, _, _):
        assert await resolver.addresses("beast.test", 80) == [("10.0.0.2", 80)]
        assert dns.asked == ["beast.test"]


@pytest.mark.parametrize("name", ["beast.local", "beast.local.", "beast"])
async def test_mdns_and_names_of_one_label_are_the_systems(name: str) -> None:
    system = System()
    system.hosts[name] = "10.0.0.2"
    async with resolving(system) as (resolver, dns, _, _):
        assert await resolver.addresses(name, 80) == [("10.0.0.2", 80)]
        assert not dns.asked


@pytest.mark.parametrize("name", ["localhost", "LocalHost.", "beast.localhost"])
async def test_localhost_needs_no_lookup(name: str) -> None:
    async with resolving() as (resolver, dns, system, _):
        assert await resolver.addresses(name, 80) == [("127.0.0.1", 80), ("::1", 80)]
        found = await resolver.resolve(name, 80, socket.AF_INET)
        assert [(each["hostname"], each["host"], each["port"]) for each in found] == [
            (name, "127.0.0.1", 80)
        ]
        assert not dns.asked
        assert not system.asked


async def test_real_system_is_asked_for_a_name_of_one_label() -> None:
    resolver = Resolver()
    with pytest.raises(OSError, match="can't resolve no-such-host-here"):
        await resolver.addresses("no-such-host-here", 80)
    await resolver.close()


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "x" * 70 + ".test", "a\0b", ".", ""])
async def test_what_is_no_name_is_an_error_that_says_so(host: str) -> None:
    resolver = Resolver()
    with pytest.raises(OSError, match="can't resolve"):
        await resolver.addresses(host, 80)
    await resolver.close()


async def test_an_answer_is_used_for_a_while_and_then_the_newest_is() -> None:
    async with resolving() as (resolver, dns, _, clock):
        dns.hosts["beast.test"] = "10.0.0.1"
        for _ in range(3):
            assert await resolver.addresses("Beast.Test", 80) == [("10.0.0.1", 80)]
        assert len(dns.asked) == 1
        dns.hosts["beast.test"] = "10.0.0.2"
        clock.now += TTL - 0.1
        assert await resolver.addresses("beast.test", 80) == [("10.0.0.1", 80)]
        clock.now += 0.2
        assert await resolver.addresses("beast.test", 81) == [("10.0.0.2", 81)]


async def test_when_the_name_is_gone_the_last_good_answer_is_used() -> None:
    async with resolving() as (resolver, dns, system, clock):
        dns.hosts["beast.test"] = "10.0.0.1"
        await resolver.addresses("beast.test", 80)
        del dns.hosts["beast.test"]
        clock.now += TTL
        assert await resolver.addresses("beast.test", 80) == [("10.0.0.1", 80)]
        assert system.asked == ["beast.test"]
        assert await resolver.addresses("beast.test", 80) == [("10.0.0.1", 80)]
        assert len(system.asked) == 1
        dns.hosts["beast.test"] = "10.0.0.2"
        clock.now += RETRY
        assert await resolver.addresses("beast.test", 80) == [("10.0.0.2", 80)]


async def test_when_nobody_answers_the_last_good_answer_is_used_before_anyone_gives_up() -> None:
    async with resolving() as (resolver, dns, system, clock):
        dns.hosts["beast.test"] = "10.0.0.1"
        await resolver.addresses("beast.test", 80)
        dns.answers = False
        system.go.clear()
        clock.now += TTL
        async with asyncio.timeout(PATIENCE * 10):
            assert await resolver.addresses("beast.test", 80) == [("10.0.0.1", 80)]
            # The lookup goes on, and nobody waits for it again so soon.
            waiting = asyncio.ensure_future(resolver.addresses("beast.test", 80))
            await asyncio.sleep(0)
            assert waiting.done()
            assert await waiting == [("10.0.0.1", 80)]


async def test_lookup_without_an_answer_is_an_error_that_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver_module, "FIRST_PATIENCE", 0.01)
    async with resolving(System(beast="10.0.0.1")) as (resolver, _, system, _):
        system.go.clear()
        with pytest.raises(OSError, match=r"no name server has answered within 0\.01 s"):
            await resolver.addresses("beast", 80)
        system.go.set()
        await until(lambda: not resolver._asking)
        assert await resolver.addresses("beast", 80) == [("10.0.0.1", 80)]
        assert system.asked == ["beast"]


async def test_a_name_that_nobody_knows_is_an_error_that_says_so_and_is_asked_again() -> None:
    async with resolving() as (resolver, dns, _, _):
        with pytest.raises(OSError, match=r"can't resolve beast\.test: Name or service not known"):
            await resolver.addresses("beast.test", 80)
        dns.hosts["beast.test"] = "10.0.0.1"
        assert await resolver.addresses("beast.test", 80) == [("10.0.0.1", 80)]


async def test_lookups_of_one_name_are_one_lookup_that_no_leaver_takes_along() -> None:
    async with resolving(System(beast="10.0.0.1")) as (resolver, _, system, _):
        system.go.clear()
        waiting = [asyncio.ensure_future(resolver.addresses("beast", n)) for n in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.pop(0).cancel()
        system.go.set()
        assert await asyncio.gather(*waiting) == [[("10.0.0.1", n)] for n in range(1, 100)]
        assert system.asked == ["beast"]


async def test_a_family_that_is_asked_for_is_the_only_one_returned() -> None:
    async with resolving(System(beast="10.0.0.1")) as (resolver, _, _, _):
        assert len(await resolver.resolve("beast", 80, socket.AF_UNSPEC)) == 1
        assert len(await resolver.resolve("beast", 80, socket.AF_INET)) == 1
        with pytest.raises(OSError, match="beast has no AF_INET6 address"):
            await resolver.resolve("beast", 80, socket.AF_INET6)


async def test_address_that_took_a_connection_comes_first_also_in_newer_answers() -> None:
    system = System()
    both = [Address(socket.AF_INET6, "fd00::1"), Address(socket.AF_INET, "10.0.0.1")]

    async def ask(name: str) -> Iterable[Address]:
        return [*both, Address(socket.AF_INET, system.hosts.get(name, "10.0.0.9"))]

    clock = Clock()
    resolver = Resolver(ask_system=ask, now=clock)
    resolver.prefer("Beast", "10.0.0.1")
    for _ in range(2):
        found = [ip for ip, _ in await resolver.addresses("beast", 80)]
        assert found == ["10.0.0.1", "fd00::1", "10.0.0.9"]
        clock.now += TTL
    found = [ip for ip, _ in await resolver.addresses("attic", 80)]
    assert found[0] == "fd00::1"
    resolver.prefer("beast", "10.0.0.7")  # is not among the answers
    assert (await resolver.addresses("beast", 80))[0][0] == "fd00::1"
    resolver.prefer("localhost", "::1")
    assert await resolver.addresses("localhost", 80) == [("::1", 80), ("127.0.0.1", 80)]
    await resolver.close()


async def test_the_oldest_answers_make_room_for_new_ones() -> None:
    system = System()
    system.hosts = {f"host{n}": "10.0.0.1" for n in range(MAX_NAMES + 10)}
    async with resolving(system) as (resolver, _, _, _):
        for name in system.hosts:
            await resolver.addresses(name, 80)
        assert len(resolver._answers) == MAX_NAMES
        assert not resolver._asking
        await resolver.addresses("host0", 80)
        assert system.asked.count("host0") == 2
        await resolver.addresses(f"host{MAX_NAMES}", 80)
        assert system.asked.count(f"host{MAX_NAMES}") == 1


async def test_closing_ends_every_lookup_and_tells_who_waits() -> None:
    before = asyncio.all_tasks()
    async with resolving() as (resolver, dns, system, _):
        dns.answers = False
        system.go.clear()
        waiting = [
            asyncio.ensure_future(resolver.addresses(name, 80)) for name in ("beast", "beast.test")
        ]
        async with asyncio.timeout(GUARD):
            while not (system.asked and dns.asked):
                await asyncio.sleep(0.005)
            await resolver.close()
            for each in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(each, OSError)
                assert "the resolver is closed" in str(each)
        assert asyncio.all_tasks() == before


@asynccontextmanager
async def greeter() -> AsyncIterator[int]:
    """The port of a server that says which Host it was asked for."""

    async def hello(request: web.BaseRequest) -> web.Response:
        return web.Response(text=request.headers["Host"])

    runner = web.ServerRunner(web.Server(hello))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_an_aiohttp_session_connects_through_it() -> None:
    async with (
        greeter() as port,
        resolving(System(beast_local="127.0.0.1")) as (resolver, dns, _, _),
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
        ) as session,
    ):
        dns.hosts["beast.test"] = "127.0.0.1"
        for name in ("beast.test", "beast.local"):
            async with session.get(f"http://{name}:{port}/") as answer:
                assert await answer.text() == f"{name}:{port}"
        with pytest.raises(aiohttp.ClientConnectorError, match="can't resolve nobody"):
            await session.get(f"http://nobody:{port}/")
