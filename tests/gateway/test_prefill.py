"""Keep-alive events while a model that is loaded reads a long prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.fakes import FakeNeuron
from tests.functional.raw import Client, connected
from tests.gateway.decoders import DECODERS
from tests.gateway.dialects import (
    CHAT,
    MESSAGES,
    Dialect,
    assert_ended_well,
    engine,
    in_every_dialect,
)
from tests.gateway.fleet import Fleet, running_fleet, until
from tests.gateway.kept import SOON, a_sign_of_life, keepalive

COMMENT = b": cortexd waiting for m on a\n"
STREAM = {"Content-Type": "text/event-stream"}


class Slow:
    """A node whose engine answers once it may. head_first: with its head before that."""

    def __init__(self, dialect: Dialect, *, head_first: bool = False, fails: bool = False) -> None:
        self.may_answer = asyncio.Event()
        self.neuron: FakeNeuron = engine({"m": "loaded"}, self._infer)
        self._dialect = dialect
        self._head_first = head_first
        self._fails = fails

    async def _infer(self, request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers=STREAM)
        if self._fails:
            response = web.StreamResponse(
                status=400, headers={"Content-Type": "application/json", "Content-Length": "29"}
            )
        if self._head_first:
            await response.prepare(request)
        await self.may_answer.wait()
        await response.prepare(request)
        await response.write(
            b'{"error":{"message":"no way"}}'[:29] if self._fails else self._dialect.answer
        )
        return response


@asynccontextmanager
async def waiting(slow: Slow, prefill: float = SOON) -> AsyncIterator[tuple[Fleet, Client]]:
    config = keepalive(prefill=prefill)
    async with (
        running_fleet(config=config, a=slow.neuron) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        yield fleet, client


@pytest.mark.parametrize("head_first", [False, True])
@in_every_dialect
async def test_stream_on_a_loaded_model_is_kept_alive_until_its_first_byte(
    dialect: Dialect, head_first: bool
) -> None:
    slow = Slow(dialect, head_first=head_first)
    async with waiting(slow) as (_, client):
        await client.send(dialect.request())
        so_far = b"".join([await a_sign_of_life(client) for _ in range(2)])
        slow.may_answer.set()
        heard = await client.read_answer(so_far=so_far)
        assert heard.status == 200
        assert heard.get("x-cortex-route") == "loaded"
        assert heard.get("x-cortex-cold-start") == "false"
        # Until its head comes another node may have to answer.
        assert heard.get("x-cortex-node") == ("a" if head_first else None)
        said, answer = dialect.split(heard.body)
        assert said.count(b"event: ping\n" if dialect is MESSAGES else COMMENT) >= 2
        assert answer == dialect.answer
        assert_ended_well(heard)
        for decode in DECODERS:
            assert "" not in [data for _, data in decode(heard.body.decode())]
        again = await client.ask(dialect.request())
        assert again.body == dialect.answer


@in_every_dialect
async def test_http_1_0_stream_on_a_loaded_model_is_kept_alive(dialect: Dialect) -> None:
    slow = Slow(dialect)
    async with waiting(slow) as (_, client):
        await client.send(dialect.request(version="1.0"))
        end = b'"ping"}\n\n' if dialect is MESSAGES else COMMENT
        so_far = b"".join([await client.read_until(end) for _ in range(2)])
        slow.may_answer.set()
        heard = await client.read_answer(so_far=so_far)
        assert dialect.split(heard.body)[1] == dialect.answer
        assert heard.get("connection") == "close"
        assert client.ended == "eof"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@in_every_dialect
async def test_engine_error_after_keep_alives_is_an_error_event(
    dialect: Dialect, version: str
) -> None:
    slow = Slow(dialect, fails=True)
    async with waiting(slow) as (fleet, client):
        await client.send(dialect.request(version=version))
        so_far = await client.read_until(b"cortexd waiting" if dialect is not MESSAGES else b"ping")
        slow.may_answer.set()
        heard = await client.read_answer(so_far=so_far)
        _, event = dialect.split(heard.body)
        assert dialect.code(event)
        assert heard.complete
        metric = fleet.metric
        assert await metric("cortexd_requests_total", status="400", path=dialect.path) == 1


async def test_error_whose_body_is_slow_has_nothing_else_in_it() -> None:
    slow = Slow(CHAT, head_first=True, fails=True)
    async with waiting(slow) as (fleet, client), connected(fleet.gateway.address) as other:
        await client.send(CHAT.request())
        await until(lambda: bool(slow.neuron.inference))
        slow._fails = False
        slow._head_first = False
        await other.send(CHAT.request())
        so_far = b"".join([await a_sign_of_life(other) for _ in range(3)])
        slow.may_answer.set()
        heard = await client.read_answer()
        assert (heard.status, heard.get("content-length")) == (400, "29")
        assert b"cortexd" not in heard.body
        assert (await other.read_answer(so_far=so_far)).complete


async def test_engine_that_dies_after_keep_alives_ends_the_stream_in_an_error() -> None:
    async def die(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        await slow.may_answer.wait()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    slow = Slow(CHAT)
    slow.neuron.infer = die
    async with waiting(slow) as (fleet, client):
        await client.send(CHAT.request())
        so_far = await a_sign_of_life(client)
        slow.may_answer.set()
        heard = await client.read_answer(so_far=so_far)
        _, event = CHAT.split(heard.body)
        assert CHAT.code(event) == "upstream_failed"
        assert_ended_well(heard)
        assert await fleet.metric("cortexd_requests_total", status="502") == 1


async def test_request_that_is_no_stream_gets_no_keep_alive() -> None:
    slow = Slow(CHAT)
    async with waiting(slow) as (fleet, client), connected(fleet.gateway.address) as other:
        await client.send(CHAT.request(stream=False))
        await until(lambda: len(slow.neuron.inference) == 1)
        await other.send(CHAT.request())
        so_far = b"".join([await a_sign_of_life(other) for _ in range(3)])
        assert not client.unread
        slow.may_answer.set()
        heard = await client.read_answer()
        assert (heard.get("x-cortex-node"), heard.body) == ("a", CHAT.answer)
        assert (await other.read_answer(so_far=so_far)).complete


async def test_stream_gets_no_keep_alive_where_it_is_turned_off() -> None:
    slow = Slow(CHAT)
    slow.neuron.models["cold"] = "loading"
    async with waiting(slow, 0.0) as (fleet, client), connected(fleet.gateway.address) as other:
        await client.send(CHAT.request())
        await until(lambda: len(slow.neuron.inference) == 1)
        # The keep-alives of a load are the clock: a second of them.
        await other.send(CHAT.request(model="cold"))
        for _ in range(30):
            await a_sign_of_life(other)
        assert not client.unread
        slow.may_answer.set()
        heard = await client.read_answer()
        assert (heard.get("x-cortex-node"), heard.body) == ("a", CHAT.answer)
