"""Accepted connections: slow peers, back-pressure, the cap, and answers for handlers that fail."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

import pytest
from aiohttp import web

from cortexd.proxy import door as doors
from cortexd.proxy import server as servers
from cortexd.proxy.deadlines import Limits, Overdue
from cortexd.proxy.door import Sent
from cortexd.proxy.gate import MAX_FIELDS, MAX_HEAD, MAX_TARGET
from cortexd.proxy.server import DoorServer
from tests.functional.raw import answered, answers, connected
from tests.proxy.site import PATIENT, Site, held, open_site
from tests.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
SHORT = 0.05  # seconds


def get(name: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET /{name} HTTP/1.1", "Host: x", *headers, "\r\n"]).encode()


def short(**limits: float) -> Limits:
    """One limit short, the others never met."""
    return Limits(**{name: limits.get(name, 3600) for name in Limits.__slots__})


class Sink:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


class Written(web.StreamResponse):
    """An answer that was written to the transport already."""

    async def prepare(self, request: web.BaseRequest) -> None:  # type: ignore[override]
        self._keep_alive = request.keep_alive

    async def write_eof(self, data: bytes = b"") -> None:
        pass


# Deadlines.


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        (short(idle=SHORT), b""),
        (short(head=SHORT), b"GET / HT"),
        (short(idle=SHORT), b"\r\n"),
        (short(head=SHORT), GET + b"GET / HTTP/1.1\r\n"),
        (short(body=SHORT), POST),
        (short(body=SHORT), POST + b"12345"),
        (short(body=SHORT), GET + POST + b"12345"),
        (short(idle=SHORT), GET),
        (short(idle=SHORT), GET + b"\r\n"),
    ],
)
async def test_a_client_that_falls_silent_is_cut(limits: Limits, sent: bytes) -> None:
    async with open_site(limits=limits) as site, connected(site.address) as client:
        for part in sent.partition(GET):
            await client.send(part)
            if part == GET:
                await client.read_until(b"hello")
        await client.read_rest()
        await until(lambda: not site.server.doors)
        if POST in sent:
            await until(site.cancelled.is_set)
        assert b"HTTP/1.1 4" not in client.received


async def test_a_head_that_drips_is_cut_in_the_middle() -> None:
    async with open_site(limits=short(head=SHORT)) as site, connected(site.address) as client:
        await client.send(b"GET / HTTP/1.1\r\n")

        async def drip() -> None:
            with suppress(ConnectionError):
                while True:
                    await client.send(b"X: y\r\n")
                    await asyncio.sleep(SHORT / 10)

        dripping = asyncio.ensure_future(drip())
        await client.read_rest()
        dripping.cancel()
        assert site.handled == []


async def test_every_byte_of_a_body_gives_the_client_more_time() -> None:
    async with (
        open_site(limits=short(body=100)) as site,
        connected(site.address) as client,
    ):
        await client.send(POST + b"1")
        await until(lambda: bool(site.handled) and site.door._gate.awaits == "body")
        gate: Any = site.door._gate
        first = gate.since
        await client.send(b"2")
        await until(lambda: gate.since > first)
        assert not site.door.overdue(first + 100.0001)
        assert not site.door.overdue(gate.since + 99)
        assert site.door.overdue(gate.since + 101)


async def test_a_connection_opened_in_advance_may_be_silent_as_long_as_an_idle_one() -> None:
    limits = Limits(head=10, idle=75)
    async with open_site(limits=limits) as site, connected(site.address) as client:
        await until(lambda: bool(site.server.doors) and site.door.is_idle)
        door, now = site.door, asyncio.get_running_loop().time()
        assert door.overdue(now + 70) is None
        await client.send(b"G")
        gate = cast(Any, door._gate)
        await until(lambda: gate.awaits == "head")
        assert door.overdue(gate.since + 9) is None
        assert door.overdue(gate.since + 11) is not None


async def test_a_head_is_due_from_its_first_byte_whatever_comes_later() -> None:
    async with open_site(limits=short(head=100)) as site, connected(site.address) as client:
        await client.send(GET)
        await client.read_until(b"hello")
        door, gate = site.door, cast(Any, site.door._gate)
        assert not door.overdue(gate.since + 1000)  # between two requests nothing is due
        await client.send(b"GET / ")
        await until(lambda: gate.awaits == "head")
        first = gate.since
        size = gate._head
        await client.send(b"HTTP/1.1\r\n")
        await until(lambda: gate._head > size)
        assert gate.since == first
        assert not door.overdue(first + 99)
        assert door.overdue(first + 101)


async def test_half_a_head_behind_a_long_answer_does_not_cost_that_answer() -> None:
    hold, is_let_go = held(b"whole")
    async with open_site(hold, limits=short(head=100)) as site, connected(site.address) as client:
        await client.send(GET)
        await until(lambda: bool(site.handled))
        await client.send(b"GET / HTTP/1.1\r\n")
        await until(lambda: site.door._gate.awaits == "head")
        now = asyncio.get_running_loop().time()
        assert not site.door.overdue(now + 1000)
        is_let_go.set()
        await client.read_until(b"whole")
        assert not site.door.overdue(now + 1099)
        assert site.door.overdue(now + 1101)


async def test_a_body_that_we_do_not_read_is_not_the_clients_delay() -> None:
    is_let_go = asyncio.Event()

    async def hold(request: web.BaseRequest) -> web.Response:
        await is_let_go.wait()
        return web.Response(body=str(len(await request.read())).encode())

    size = 1 << 20
    async with open_site(hold, limits=short(body=100)) as site, connected(site.address) as client:
        body = POST.replace(b"10", b"%d" % size) + bytes(size)
        sending = asyncio.ensure_future(client.send(body))
        await until(lambda: bool(site.handled) and not site.door._wire.is_reading())  # type: ignore[union-attr]
        now = asyncio.get_running_loop().time()
        assert not site.door.overdue(now + 1000)
        is_let_go.set()
        await client.read_until(str(size).encode())
        await sending


SIZES = sorted({size + off for size in (1 << bit for bit in range(10, 21)) for off in (-1, 0, 1)})


@pytest.mark.parametrize("is_trickled", [False, True], ids=["one-send", "trickled"])
@pytest.mark.parametrize("answer", ["at-once", "waits", "streams"])
async def test_deadline_of_a_body_ends_when_the_body_has_arrived(
    is_trickled: bool, answer: str
) -> None:
    """Whatever its size, and whether or not aiohttp paused its parser on the way."""
    go_on = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if answer == "streams":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"begun")
            await go_on.wait()
            await response.write(b" %d." % len(body))
            await response.write_eof()
            return response
        if answer == "waits":
            await go_on.wait()
        return web.Response(body=b" %d." % len(body))

    # Deadlines are asked for below, at any time; none is met by itself.
    async with (
        open_site(handle, limits=short(body=30), max_body=2 << 20) as site,
        connected(site.address) as client,
    ):
        for number, size in enumerate(SIZES, 1):
            go_on.clear()
            await client.send(POST.replace(b"10", b"%d" % size))
            body, step = bytes(size), size if not is_trickled else max(size // 9, 1)
            if is_trickled:
                await until(lambda number=number: len(site.handled) == number)
            for at in range(0, size, step):
                await client.send(body[at : at + step])
                await asyncio.sleep(0)
            await until(lambda number=number: len(site.handled) == number)
            if answer == "streams":
                await client.read_until(b"begun")
            if answer != "at-once":
                gate = cast(Any, site.door._gate)
                await until(lambda gate=gate: gate._payload.at_eof())
                assert gate.awaits is None, size
                assert site.door.overdue(asyncio.get_running_loop().time() + 3600) is None
            go_on.set()
            await client.read_until(b" %d." % size)
            if answer == "streams":
                await client.read_until(b"0\r\n\r\n")


async def test_a_body_slower_than_the_least_rate_is_overdue() -> None:
    limits = Limits(body=30, body_window=60, body_rate=10)
    async with open_site(limits=limits) as site, connected(site.address) as client:
        await client.send(POST.replace(b"10", b"100000"))
        await until(lambda: bool(site.handled))
        door, gate = site.door, cast(Any, site.door._gate)
        now = gate.since
        assert door.overdue(now) is None

        async def passed(seconds: int, rate: int) -> Overdue | None:
            """What is overdue after so many seconds, in each of which so many bytes come."""
            nonlocal now
            found = None
            for _ in range(seconds):
                due = gate.taken + rate
                await client.send(bytes(rate))
                await until(lambda due=due: gate.taken == due)
                now = gate.since = now + 1
                found = found or door.overdue(now)
            return found

        assert await passed(61, 10) is None
        found = await passed(61, 9)
        assert found is not None
        assert found.text == "its request body came at less than 10 bytes/s for 60 s"


async def test_a_body_has_a_deadline_for_the_whole_of_it() -> None:
    limits = Limits(body=30, body_window=3600, body_total=100)
    async with open_site(limits=limits) as site, connected(site.address) as client:
        await client.send(POST.replace(b"10", b"100000"))
        await until(lambda: bool(site.handled))
        door, gate = site.door, cast(Any, site.door._gate)
        start = gate.since
        for second in range(101):
            gate.since = start + second  # as if a byte had come
            assert door.overdue(start + second) is None
        found = door.overdue(start + 101)
        assert found is not None
        assert found.text == "its request body was not whole after 100 s"


@pytest.mark.parametrize(
    ("limits", "sent", "text"),
    [
        (
            short(head=SHORT),
            b"GET /secret HT",
            "the head of its request was not whole after 0.05 s",
        ),
        (short(body=SHORT), POST + b"secret", "no byte of its request body came for 0.05 s"),
    ],
)
async def test_a_cut_by_a_deadline_is_logged_with_the_deadline_and_the_peer(
    caplog: pytest.LogCaptureFixture, limits: Limits, sent: bytes, text: str
) -> None:
    caplog.set_level("INFO", "cortexd.proxy")
    async with open_site(limits=limits) as site, connected(site.address) as client:
        await client.send(sent)
        await client.read_rest()
        host, port = client.sock.getsockname()
        await until(lambda: bool(caplog.records))
    (record,) = caplog.records
    assert record.getMessage() == f"closed the connection from {host}:{port}: {text}"
    assert record.levelname == "INFO"


async def test_end_of_an_idle_connection_is_not_logged_at_info(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "cortexd.proxy")
    async with open_site(limits=short(idle=SHORT)) as site, connected(site.address) as client:
        await client.send(GET)
        await client.read_rest()
    assert not caplog.records


async def fill(request: web.BaseRequest) -> int:
    """Write until bytes stay behind in the client's transport, turn after turn of the loop."""
    transport = request.transport
    assert transport is not None
    sent = 0
    while transport.get_write_buffer_size() < 1 << 15:
        transport.write(bytes(1 << 13))
        sent += 1 << 13
        await asyncio.sleep(0)
    request.writer.output_size = sent
    return sent


async def stall_streaming(request: web.BaseRequest) -> web.StreamResponse:
    await fill(request)
    await asyncio.Event().wait()
    raise AssertionError


async def stall_at_the_end(request: web.BaseRequest) -> web.StreamResponse:
    await fill(request)
    return Written()


async def stall_in_aiohttp(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=bytes(32 << 20))


@pytest.mark.parametrize("handler", [stall_streaming, stall_at_the_end, stall_in_aiohttp])
@pytest.mark.parametrize("sent", [GET, LAST])
async def test_a_client_that_takes_nothing_is_cut(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], sent: bytes
) -> None:
    async with (
        open_site(handler, limits=short(stall=SHORT)) as site,
        connected(site.address, receive_buffer=4096) as client,
    ):
        await client.send(sent)
        await until(lambda: bool(site.handled))
        await until(lambda: not site.server.doors)
        if handler is stall_streaming:
            await until(site.cancelled.is_set)


async def test_a_client_that_takes_a_little_now_and_then_is_not_cut() -> None:
    async with (
        open_site(stall_streaming, limits=short(stall=100)) as site,
        connected(site.address, receive_buffer=4096) as client,
    ):
        await client.send(GET)
        await until(lambda: bool(site.server.doors) and site.door._wire is not None)
        wire = site.door._wire
        assert wire is not None
        await until(lambda: wire.get_write_buffer_size() >= 1 << 15)
        before = wire.get_write_buffer_size()
        assert not site.door.overdue(0)
        assert site.door.overdue(101)
        while wire.get_write_buffer_size() == before:
            await client.read_some()
        assert not site.door.overdue(101)
        assert not site.door.overdue(200)


async def test_silent_clients_do_not_keep_others_waiting() -> None:
    async with open_site() as site:
        silent = [connected(site.address) for _ in range(80)]
        clients = [await each.__aenter__() for each in silent]
        for client in clients:
            await client.send(POST)
        await until(lambda: len(site.handled) == len(silent))
        assert b"hello" in await answered(site.address, LAST)
        for each in silent:
            await each.__aexit__(None, None, None)


# Back-pressure.


async def test_the_sink_is_told_when_the_client_stalls_and_when_it_goes_on() -> None:
    sink = Sink()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        protocol: Any = request.protocol
        protocol.sink = sink
        transport = request.transport
        assert transport is not None
        assert transport.get_write_buffer_limits() == (doors.LOW_WATER, doors.HIGH_WATER)  # type: ignore[attr-defined]
        size = 0
        while not sink.told:
            assert transport.get_write_buffer_size() <= doors.HIGH_WATER
            transport.write(bytes(1 << 13))
            size = transport.get_write_buffer_size()
            await asyncio.sleep(0)
        assert size > doors.HIGH_WATER
        await until(lambda: len(sink.told) > 1)
        assert transport.get_write_buffer_size() <= doors.LOW_WATER
        request.writer.output_size = 1
        protocol.abort()
        return Written()

    async with (
        open_site(stream) as site,
        connected(site.address, receive_buffer=4096) as client,
    ):
        await client.send(GET)
        await until(lambda: bool(sink.told))
        await client.read_rest()
        assert sink.told == ["pause", "resume"]


async def test_without_a_sink_pausing_is_aiohttps_own() -> None:
    body = bytes(8 << 20)

    async def large(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body)

    async with open_site(large) as site:
        received = await answered(site.address, LAST)
        assert received.endswith(body)


# Answers.


async def write_out(request: web.BaseRequest) -> Sent:
    """The request's path as an answer, written past aiohttp."""
    body = request.path.encode()
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    request.writer.output_size = 1
    return Sent(may_go_on=request.keep_alive)


async def test_an_answer_that_is_out_already_lets_the_connection_go_on() -> None:
    tasks = set()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        tasks.add(asyncio.current_task())
        return await write_out(request)

    async with open_site(answer) as site, connected(site.address) as client:
        await client.send(get("1") + get("2"))  # in one piece: pipelined
        await client.read_until(b"/2")
        await client.send(get("3", "Connection: close") + b"\r\n")
        await client.read_rest()
        bodies = [each.body for each in answers(client.received, *["GET"] * 3)]
        assert bodies == [b"/1", b"/2", b"/3"]
        assert len(tasks) == 1  # the connection's own: one for each would cost each of them


async def test_a_body_that_nobody_read_is_drained_before_the_next_request() -> None:
    post = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n"
    async with open_site(write_out) as site, connected(site.address) as client:
        await client.send(post)
        await client.read_until(b"/1")
        await client.send(bytes(600_000) + get("2", "Connection: close"))
        await client.read_rest()
        bodies = [each.body for each in answers(client.received, "POST", "GET")]
        assert bodies == [b"/1", b"/2"]


async def test_a_body_that_nobody_read_is_waited_for_only_so_long() -> None:
    limits = short(linger=SHORT)
    async with open_site(write_out, limits=limits) as site, connected(site.address) as client:
        await client.send(POST)
        assert (await client.read_rest()).endswith(b"\r\n\r\n/")
        await until(lambda: not site.server.doors)


async def test_more_requests_than_are_queued_are_all_answered_in_order() -> None:
    async with open_site(write_out) as site, connected(site.address) as client:
        names = [str(number) for number in range(200)]
        await client.send(b"".join(map(get, names)) + get("last", "Connection: close"))
        await client.read_rest()
        bodies = [each.body.decode() for each in answers(client.received, *["GET"] * 201)]
        assert bodies == [f"/{name}" for name in [*names, "last"]]


async def test_an_answer_that_can_not_be_made_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(web.Response):
        async def prepare(self, request: web.BaseRequest) -> None:
            raise ZeroDivisionError

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return Broken()

    async with open_site(answer) as site, connected(site.address) as client:
        await client.send(GET)
        assert await client.read_rest() == b""
        await until(lambda: not site.server.doors)
    assert "ZeroDivisionError" in caplog.text


async def test_a_slow_reader_of_a_whole_answer_is_no_idle_client() -> None:
    """Its connection is idle as far as requests go, but it still takes what it asked for."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(bytes(8 << 20))
        return Sent(may_go_on=True)

    async with (
        open_site(answer, limits=short(idle=10)) as site,
        connected(site.address, receive_buffer=4096) as client,
    ):
        await client.send(GET)
        await until(lambda: bool(site.handled) and site.door.is_idle)
        door, now = site.door, asyncio.get_running_loop().time()
        for waited in (0, 9, 18):
            assert not door.overdue(now + waited)
        while door._deadlines.unsent:
            await client.read_some()
            assert not door.overdue(now + 18)
        assert not door.overdue(now + 27)
        assert door.overdue(now + 29)


async def test_head_is_answered_without_a_body_and_the_connection_goes_on() -> None:
    async with open_site() as site:
        first, second, third = answers(
            await answered(site.address, HEAD + HEAD + LAST), "HEAD", "HEAD", "GET"
        )
        assert (first.status, first.get("content-length")) == (200, "5")
        assert first.body == second.body == b""
        assert third.body == b"hello"


async def test_a_refused_head_request_has_no_body_either() -> None:
    async with open_site() as site:
        raw = HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
        (answer,) = answers(await answered(site.address, raw), "HEAD")
        assert (answer.status, answer.body) == (400, b"")


async def test_a_handler_that_fails_is_answered_once_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(request: web.BaseRequest) -> web.StreamResponse:
        raise ZeroDivisionError("s3cret")

    async with open_site(fail) as site:
        received = await answered(site.address, GET + GET)
        (answer,) = answers(received, "GET")
        assert (answer.status, answer.get("x-code")) == (500, "internal_error")
        assert b"s3cret" not in received
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("cortexd.proxy.door", "ERROR")
    assert "ZeroDivisionError" in caplog.text


async def test_after_the_first_byte_a_failure_cuts_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        request.writer.output_size = 1
        await is_read.wait()
        raise ZeroDivisionError

    is_read = asyncio.Event()
    async with open_site(fail) as site, connected(site.address) as client:
        await client.send(GET + GET)
        await client.read_until(b"begun")
        is_read.set()
        assert await client.read_rest() == b""
        assert len(site.handled) == 1
    assert site.refused == []
    assert len(caplog.records) == 1


async def test_a_body_over_the_bound_is_the_handlers_to_answer() -> None:
    async def read(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await request.read()
        except web.HTTPRequestEntityTooLarge:
            return web.Response(status=413)
        return web.Response()

    async with open_site(read, max_body=9) as site, connected(site.address) as client:
        await client.send(POST + b"1234567890" + POST + b"123456789")
        await client.read_until(b" 413 ")
        assert b" 200 " not in client.received


async def test_compressed_bodies_arrive_as_they_are() -> None:
    body = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    raw = POST.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n")
    async with open_site() as site:
        await answered(site.address, raw + body)
        assert site.handled[0][2] == body


# The server.


async def test_a_door_lives_by_the_limits_it_was_given() -> None:
    limits = Limits(1, 2, 3, 4, 5)
    async with open_site(limits=limits) as site, connected(site.address) as client:
        await client.send(GET)
        await client.read_until(b"hello")
        door = site.door
        assert door._limits == limits
        assert (door.max_line_size, door.max_headers) == (MAX_TARGET, MAX_FIELDS)
        assert door.max_field_size == MAX_HEAD
        assert door._read_bufsize == doors.READ_BUFFER
        assert door.access_logger is None
        assert site.server.handler_cancellation


def test_the_limits_are_what_is_documented() -> None:
    assert Limits() == Limits(
        head=10,
        body=30,
        stall=60,
        idle=75,
        linger=5,
        body_window=60,
        body_rate=256,
        body_total=600,
    )
    assert (MAX_TARGET, MAX_HEAD, MAX_FIELDS) == (8192, 32768, 100)
    assert (doors.HIGH_WATER, doors.LOW_WATER) == (65536, 16384)


@pytest.mark.parametrize(("max_body", "seconds"), [(64 << 20, 600), (1 << 30, 8192)])
async def test_the_largest_body_allowed_may_come_at_1_mbit_per_second(
    max_body: int, seconds: float
) -> None:
    async with open_site(limits=Limits(), max_body=max_body) as site:
        assert site.server._limits.body_total == seconds


async def test_a_misspelt_limit_is_an_error() -> None:
    site: Any = Site(None)
    with pytest.raises(TypeError):
        Limits(haed=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        DoorServer(
            site.handle,
            site.refuse,
            max_body=1,
            max_connections=1,
            keepalive_timeuot=1,  # type: ignore[call-arg]
        )


async def test_connections_over_the_cap_are_told_so_and_cost_nobody_else_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    async with open_site(max_connections=2) as site:
        async with connected(site.address) as first, connected(site.address) as second:
            await until(lambda: len(site.server.doors) == 2)
            for sent in (b"", GET, POST + b"1234567890"):
                async with connected(site.address) as third:
                    await third.send(sent)
                    (answer,) = answers(await third.read_rest(), "GET")
                    assert third.ended == "eof"
                assert (answer.status, answer.body) == (503, b"overloaded -")
                assert answer.get("connection") == "close"
            assert site.refused == ["overloaded"] * 3
            for client in (first, second):
                await client.send(GET)
                await client.read_until(b"hello")
        await until(lambda: not site.server.doors)
        assert b"hello" in await answered(site.address, LAST)
    assert not [record for record in caplog.records if record.name != "asyncio"]


async def test_an_answer_to_a_connection_too_many_is_not_destroyed_by_what_comes_later() -> None:
    async with open_site(max_connections=1) as site, connected(site.address) as first:
        await until(lambda: len(site.server.doors) == 1)
        async with connected(site.address) as late:
            await until(lambda: bool(site.server._turned_away))
            await late.send(GET)
            await late.send(GET)
            (answer,) = answers(await late.read_rest(), "GET")
            assert (answer.status, late.ended) == (503, "eof")
        assert (await first.ask(GET)).body == b"hello"
        await until(lambda: not site.server._turned_away)


async def test_connections_too_many_that_do_not_hang_up_are_bounded() -> None:
    async with open_site(max_connections=1) as site, AsyncExitStack() as stack:
        for _ in range(1 + 2 * servers.MOST_TURNED_AWAY):
            client = await stack.enter_async_context(connected(site.address))
        assert await client.read_until(b" 503 ")
        assert len(site.server._turned_away) <= servers.MOST_TURNED_AWAY


async def test_silent_connections_make_room_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "SILENT", 0.0)
    hold, is_let_go = held(b"whole")

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return await hold(request) if request.path == "/busy" else web.Response(body=b"hello")

    async with (
        open_site(answer, max_connections=3) as site,
        connected(site.address) as busy,
        connected(site.address) as silent,
        connected(site.address) as other,
    ):
        await busy.send(get("busy"))
        assert (await other.ask(GET)).status == 200
        await until(lambda: len(site.server.doors) == 3)
        async with connected(site.address) as client:
            assert (await client.ask(GET)).status == 200
            assert await silent.read_rest() == b""
            is_let_go.set()
            assert (await busy.read_answer("GET")).body == b"whole"


async def test_connections_that_work_do_not_hide_silent_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "SILENT", 0.0)
    monkeypatch.setattr(servers, "EXAMINED", 1)
    hold, is_let_go = held(b"whole")

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return await hold(request) if request.path == "/busy" else web.Response(body=b"hello")

    async with (
        open_site(answer, max_connections=2) as site,
        connected(site.address) as busy,
        connected(site.address) as silent,
    ):
        await busy.send(get("busy"))
        await until(lambda: len(site.server.doors) == 2)
        await until(lambda: all(door._wire is not None for door in site.server.doors))
        await until(lambda: any(door._request_in_progress for door in site.server.doors))
        async with connected(site.address) as client:
            assert b" 503 " in await client.read_rest()
        async with connected(site.address) as client:
            assert (await client.ask(GET)).status == 200
        assert await silent.read_rest() == b""
        is_let_go.set()
        assert (await busy.read_answer("GET")).body == b"whole"


@pytest.mark.parametrize("begun", [POST + b"12345", b"GET / HTTP/1.1\r\n"])
async def test_clients_that_send_half_a_request_make_room_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(servers, "SILENT", 0.0)
    async with open_site(max_connections=1) as site, connected(site.address) as half:
        await half.send(begun)
        await until(lambda: bool(site.server.doors) and site.door._gate is not None)
        await until(lambda: site.door._gate.awaits is not None)
        async with connected(site.address) as client:
            assert (await client.ask(GET)).status == 200
        assert await half.read_rest() == b""


async def test_a_connection_whose_request_is_on_its_way_is_not_ended_for_a_new_one() -> None:
    async with open_site() as site, connected(site.address) as client:
        await client.send(GET)
        await client.read_until(b"hello")
        door, now = site.door, asyncio.get_running_loop().time()
        assert door.silent_for(now + 10) == 0.0  # it was not looked at since
        assert door.overdue(now + 10) is None
        assert door.silent_for(now + 15) == 5.0
        client.sock.send(GET)
        assert door.silent_for(now + 15) == 0.0  # the kernel has it


async def test_an_idle_connection_is_kept_longer_than_its_answers_say() -> None:
    async with open_site(limits=short(idle=75)) as site, connected(site.address) as client:
        heard = await client.ask(GET)
        assert (heard.get("connection"), heard.get("keep-alive")) == ("keep-alive", "timeout=75")
        door, now = site.door, asyncio.get_running_loop().time()
        assert door.overdue(now) is None
        assert door.overdue(now + 79) is None
        assert door.overdue(now + 81) is not None


async def test_a_request_that_comes_as_an_idle_connection_ends_is_answered() -> None:
    async with open_site() as site, connected(site.address) as client:
        assert (await client.ask(GET)).status == 200
        client.sock.send(GET)  # the kernel has it, the server has not had a turn
        site.door.end_idle()
        assert (await client.read_answer("GET")).body == b"hello"
        assert (await client.ask(GET)).body == b"hello"


async def test_a_request_that_comes_after_an_idle_connection_has_ended_is_not_reset() -> None:
    async with open_site() as site, connected(site.address) as client:
        assert (await client.ask(GET)).status == 200
        site.door.end_idle()
        client.sock.send(GET)
        assert await client.read_rest() == b""
        assert client.ended == "eof"
        client.leave()
        await until(lambda: not site.server.doors)
        assert len(site.handled) == 1


async def test_a_connection_that_is_closing_already_is_ended_no_other_way() -> None:
    async with open_site() as site, connected(site.address) as client:
        assert (await client.ask(GET)).status == 200
        door = site.door
        door.force_close()
        door.end_idle()
        door.sweep(asyncio.get_running_loop().time() + 10_000)
        assert await client.read_rest() == b""
        await until(lambda: not site.server.doors)
        door.end_idle()  # it has ended


async def test_a_client_that_keeps_an_ended_connection_is_hung_up_on() -> None:
    async with open_site(limits=short(linger=SHORT)) as site, connected(site.address) as client:
        assert (await client.ask(GET)).status == 200
        site.door.end_idle()
        await until(lambda: not site.server.doors)


async def test_a_server_that_leaves_says_so_in_every_answer() -> None:
    async with open_site() as site, connected(site.address) as client:
        await client.send(GET)
        await client.read_until(b"hello")
        site.server.leave()
        await client.send(GET + GET)
        await client.read_rest()
        first, second = answers(client.received, "GET", "GET")
        assert (first.get("connection"), first.get("keep-alive")) == ("keep-alive", "timeout=75")
        assert second.get("keep-alive") is None
        assert second.get("connection") == "close"
        assert len(site.handled) == 2


async def test_the_sweeper_rests_when_nobody_is_there() -> None:
    async with open_site(limits=short(idle=SHORT)) as site:
        assert site.server._sweeper._timer is None
        async with connected(site.address) as client:
            await client.read_rest()
        await until(lambda: site.server._sweeper._timer is None)


async def test_a_client_that_is_cut_frees_what_was_held_for_it() -> None:
    async with open_site(stall_streaming, limits=PATIENT) as site:
        async with connected(site.address) as client:
            await client.send(GET)
            await until(lambda: bool(site.handled))
        await until(site.cancelled.is_set)
        await until(lambda: not site.server.doors)


async def test_a_connection_that_has_ended_is_freed_without_the_collector() -> None:
    def count() -> int:
        return sum(isinstance(each, doors.Door) for each in gc.get_objects())

    async with open_site() as site:
        await answered(site.address, LAST)
        await until(lambda: not site.server.doors)
        gc.collect()
        before = count()
        gc.disable()
        try:
            for sent in (LAST, GET, POST, POST + b"1234567890", b""):
                async with connected(site.address) as client:
                    await client.send(sent)
                    await until(lambda: bool(site.server.doors))
                    if sent not in (b"", POST):
                        await client.read_some()
                await until(lambda: not site.server.doors)
            await until(lambda: count() == before)  # its task ends a turn later
        finally:
            gc.enable()


async def test_an_answer_that_is_cut_does_not_end_as_if_it_were_whole() -> None:
    """Where only the end of the connection tells, it must be a reset."""
    async with (
        open_site(stall_streaming) as site,
        connected(site.address, receive_buffer=4096) as client,
    ):
        await client.send(LAST)
        await until(lambda: bool(site.handled))
        site.server.abort()
        await client.read_rest()
        assert client.ended == "reset"
