from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.gateway import Config, Gateway
from cortexd.config.units import Size
from cortexd.proxy.bodies import Bodies
from tests.fakes import FakeNeuron
from tests.functional.raw import Client, connected
from tests.gateway.fleet import FAST, Fleet, running_fleet
from tests.waiting import until

SMALL = Config(
    polling=FAST,
    gateway=Gateway(max_body=Size(1000), max_buffered=Size(1500)),
)


@asynccontextmanager
async def small_fleet(neuron: FakeNeuron | None = None) -> AsyncIterator[tuple[Fleet, Bodies]]:
    """A gateway that takes bodies of 1000 bytes, 1500 together, and its store of them."""
    async with running_fleet(config=SMALL, a=neuron or FakeNeuron({"m": "loaded"})) as fleet:
        yield fleet, fleet.gateway._relay._bodies


@asynccontextmanager
async def client(
    fleet: Fleet, *headers: bytes, path: bytes = b"/v1/completions"
) -> AsyncIterator[Client]:
    """A connection that has sent the head of a POST."""
    async with connected(fleet.gateway.address) as client:
        await client.send(
            b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + b"\r\n".join(headers) + b"\r\n\r\n"
        )
        yield client


def padded(size: int) -> bytes:
    return b'{"model":"m"}'.ljust(size)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


async def test_a_declared_body_is_charged_as_it_arrives() -> None:
    async with small_fleet() as (fleet, bodies):
        async with client(fleet, b"Content-Length: 900") as first:
            await first.send(padded(899))
            await until(lambda: bodies.held == 899)
            async with client(fleet, b"Content-Length: 602") as second:
                head = await second.read_until(b"\r\n\r\n")
                assert b" 503 " in head
                assert b"x-cortex-code: overloaded\r\n" in head
                assert b"Retry-After: 1\r\n" in head
                assert b"Connection: close\r\n" in head
            assert bodies.held == 899
            async with client(fleet, b"Content-Length: 601") as second:
                await second.send(padded(601))
                assert b" 200 " in await second.read_until(b"\r\n\r\n")
                await until(lambda: bodies.held == 899)
            await first.send(b" ")
            assert b" 200 " in await first.read_until(b"\r\n\r\n")
        await until(lambda: bodies.held == 0)
        assert await fleet.metric("cortexd_refusals_total", code="overloaded") == 1


async def test_connections_that_declare_much_and_send_little_shut_nobody_out() -> None:
    async with small_fleet() as (fleet, bodies), AsyncExitStack() as stack:
        for _ in range(8):
            few = await stack.enter_async_context(client(fleet, b"Content-Length: 1000"))
            await few.send(b" " * 32)
        await until(lambda: bodies.held == 8 * 32)
        answer = await fleet.ask(padding="x" * 800)
        assert answer.status == 200


async def test_body_without_room_while_it_arrives_is_refused_and_releases_its_bytes() -> None:
    async with (
        small_fleet() as (fleet, bodies),
        client(fleet, b"Content-Length: 1000") as first,
        client(fleet, b"Content-Length: 1000", b"Expect: 100-continue") as second,
    ):
        await second.read_until(b"\r\n\r\n")  # its length had room
        await first.send(padded(800))
        await until(lambda: bodies.held == 800)
        await second.send(padded(600))
        await until(lambda: bodies.held == 1400)
        await second.send(b" " * 101)
        assert b" 503 " in await second.read_until(b"\r\n\r\n")
        await until(lambda: bodies.held == 800)
        await first.send(b" " * 200)
        assert b" 200 " in await first.read_until(b"\r\n\r\n")


async def test_a_chunked_body_takes_its_room_as_it_is_read() -> None:
    coding = b"Transfer-Encoding: chunked"
    async with small_fleet() as (fleet, bodies):
        async with client(fleet, coding) as first:
            await first.send(chunked(b"x" * 500, b"x" * 400))
            await until(lambda: bodies.held == 900)
            async with client(fleet, coding) as second:
                await second.send(chunked(padded(600)))
                await until(lambda: bodies.held == 1500)
                await second.send(chunked(b" "))
                assert b" 503 " in await second.read_until(b"\r\n\r\n")
            assert bodies.held == 900
        await until(lambda: bodies.held == 0)


async def test_a_chunked_body_that_grows_over_the_bound_is_413() -> None:
    async with (
        small_fleet() as (fleet, bodies),
        client(fleet, b"Transfer-Encoding: chunked") as caller,
    ):
        await caller.send(chunked(padded(1000)))
        await until(lambda: bodies.held == 1000)
        await caller.send(chunked(b" "))
        assert b" 413 " in await caller.read_until(b"\r\n\r\n")
        await until(lambda: bodies.held == 0)


async def test_a_body_that_comes_in_pieces_is_put_together() -> None:
    async with small_fleet() as (fleet, bodies):
        body = padded(700)
        async with client(fleet, b"Transfer-Encoding: chunked") as caller:
            for size in (1, 99, 600):
                await caller.send(chunked(body[:size]))
                body = body[size:]
                held = 700 - len(body)
                await until(lambda held=held: bodies.held == held)
            await caller.send(b"0\r\n\r\n")
            assert b" 200 " in await caller.read_until(b"\r\n\r\n")
        assert fleet.neurons["a"].inference_bodies == [padded(700)]


async def test_a_body_is_held_until_its_request_has_ended_in_whatever_way() -> None:
    go = asyncio.Event()

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await go.wait()
        return web.json_response({})

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with small_fleet(neuron) as (fleet, bodies):
        body = padded(200)
        length = b"Content-Length: %d" % len(body)
        async with (
            client(fleet, length) as leaving,
            client(fleet, length) as staying,
        ):
            await leaving.send(body)
            await staying.send(body)
            await until(lambda: len(neuron.inference) == 2)
            assert bodies.held == 400
            leaving.leave()
            await until(lambda: bodies.held == 200)
            go.set()
            assert b" 200 " in await staying.read_until(b"\r\n\r\n")
            await until(lambda: bodies.held == 0)
        for refused in ({"model": "unknown"}, {"model": 3}, {"model": "m", "stream": 1}):
            await fleet.ask(**refused)
            assert bodies.held == 0


@pytest.mark.parametrize(
    "headers",
    [[b"Content-Length: 1001"], [b"Content-Length: 10", b"Content-Encoding: br"]],
)
async def test_a_body_that_is_refused_takes_no_room(headers: list[bytes]) -> None:
    async with small_fleet() as (fleet, bodies), client(fleet, *headers) as caller:
        assert b" 4" in await caller.read_until(b"\r\n\r\n")
        assert bodies.held == 0


async def test_no_100_continue_is_sent_where_there_is_no_room() -> None:
    async with small_fleet() as (fleet, bodies), client(fleet, b"Content-Length: 1000") as first:
        await first.send(padded(999))
        await until(lambda: bodies.held == 999)
        async with client(fleet, b"Content-Length: 600", b"Expect: 100-continue") as caller:
            assert (await caller.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")


async def test_an_http_1_0_client_is_sent_no_100_continue() -> None:
    """It would take it for the answer: RFC 9110, section 10.1.1."""
    async with small_fleet() as (fleet, _), connected(fleet.gateway.address) as caller:
        await caller.send(
            b"POST /v1/completions HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 100\r\n\r\n" + padded(100)
        )
        assert (await caller.read_rest()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_request_whose_body_has_arrived_is_past_no_deadline_while_it_waits(
    stream: str,
) -> None:
    """Above 64 KiB the parser is paused while a body comes; an agent's first request has that."""
    go = asyncio.Event()

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await go.wait()
        return web.json_response({})

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with running_fleet(config=Config(polling=FAST), a=neuron) as fleet:
        for number, size in enumerate(range(60 << 10, 140 << 10, 5 << 10), 1):
            go.clear()
            listener = fleet.gateway.listeners["listen"]
            assert listener is not None
            body = (b'{"model":"m","stream":%b}' % stream.encode()).ljust(size)
            async with client(fleet, b"Content-Length: %d" % size) as caller:
                await caller.send(body)
                await until(lambda number=number: len(neuron.inference) == number)
                (door,) = listener.server.doors
                assert door.overdue(asyncio.get_running_loop().time() + 3600) is None, size
                go.set()
                assert b" 200 " in await caller.read_until(b"\r\n\r\n")
            await until(lambda listener=listener: not listener.server.doors)
