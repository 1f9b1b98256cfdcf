"""Who hears nothing before the real answer: where keep-alives would be wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from tests.fakes import FakeNeuron
from tests.functional.raw import connected
from tests.gateway.dialects import (
    CHAT,
    Dialect,
    engine,
    in_every_dialect,
    infer,
)
from tests.gateway.fleet import until
from tests.gateway.kept import NEVER, a_sign_of_life, keepalive, loading


@in_every_dialect
async def test_an_answer_within_the_grace_period_has_its_own_head_and_no_sign_of_life(
    dialect: Dialect,
) -> None:
    async with loading(config=keepalive(NEVER)) as (fleet, neuron, client):
        await client.send(dialect.request())
        await until(lambda: bool(fleet.loads("a")))
        neuron.release.set()
        heard = await client.read_answer()
        assert (heard.status, heard.get("x-cortex-node")) == (200, "a")
        assert heard.get("x-cortex-route") == "cold"
        assert heard.body == dialect.answer


@in_every_dialect
async def test_a_refusal_within_the_grace_period_has_its_real_status(dialect: Dialect) -> None:
    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "disk full"}, status=500)

    neuron = engine()
    neuron.load_answer = fail
    async with loading(neuron, keepalive(NEVER)) as (_, _, client):
        heard = await client.ask(dialect.request())
        assert (heard.status, heard.code) == (502, "cold_load_failed")
        assert b"disk full" in heard.body


@in_every_dialect
async def test_who_does_not_stream_waits_for_a_real_status(dialect: Dialect) -> None:
    async with loading() as (_, neuron, client), connected(client.ends()[1]) as other:
        await client.send(dialect.request(stream=False))
        await other.send(dialect.request())
        # By now the first would have heard of it too.
        so_far = b"".join([await a_sign_of_life(other) for _ in range(5)])
        assert not client.unread
        neuron.release.set()
        heard = await client.read_answer()
        assert heard.raw.startswith(b"HTTP/1.1 200 OK\r\n")
        assert heard.get("x-cortex-node") == "a"
        assert heard.body == dialect.answer
        assert (await other.read_answer(so_far=so_far)).complete


async def test_other_paths_wait_for_a_real_status() -> None:
    async with loading() as (fleet, neuron, client):
        asking = asyncio.create_task(fleet.ask(path="/v1/audio/speech", stream=True))
        await client.send(CHAT.request())
        so_far = b"".join([await a_sign_of_life(client) for _ in range(5)])
        assert not asking.done()
        neuron.infer = FakeNeuron()._infer
        neuron.release.set()
        assert (await asking).headers["x-cortex-node"] == "a"
        assert (await client.read_answer(so_far=so_far)).complete


@pytest.mark.parametrize("head_first", [False, True])
@in_every_dialect
async def test_a_slow_prompt_on_a_loaded_model_gets_no_early_head_within_its_grace_period(
    dialect: Dialect, head_first: bool
) -> None:
    thought = asyncio.Event()

    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if head_first:
            await response.prepare(request)
        await thought.wait()
        await response.prepare(request)
        await response.write(dialect.answer)
        return response

    neuron = engine({"m": "loaded"}, think)
    async with (
        loading(neuron, model="cold") as (_, _, client),
        connected(client.ends()[1]) as other,
    ):
        await client.send(dialect.request())
        await until(lambda: len(neuron.inference) == 1)
        # Somebody else's keep-alives are the clock.
        await other.send(dialect.request(model="cold"))
        for _ in range(5):
            await a_sign_of_life(other)
        thought.set()
        heard = await client.read_answer()
        assert (heard.get("x-cortex-node"), heard.get("x-cortex-route")) == ("a", "loaded")
        assert heard.body == dialect.answer


async def test_a_slow_prompt_right_after_a_short_load_gets_no_early_head() -> None:
    thought = asyncio.Event()

    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] == "m":
            await thought.wait()
        return await infer(request, body)

    neuron = engine(answer=think)
    neuron.release.set()
    config = keepalive(1.0)
    async with (
        loading(neuron, config, model="m", b=engine({"cold": "loading"})) as (_, _, client),
        connected(client.ends()[1]) as other,
    ):
        await client.send(CHAT.request())
        await until(lambda: len(neuron.inference) == 1)
        await other.send(CHAT.request(model="cold"))
        await a_sign_of_life(other)  # by then the first one's grace period is over as well
        thought.set()
        heard = await client.read_answer()
        assert (heard.get("x-cortex-node"), heard.get("x-cortex-route")) == ("a", "cold")
        assert heard.body == CHAT.answer


async def test_a_lazy_start_that_goes_on_at_a_loaded_replica_is_kept_alive_no_more() -> None:
    moved, thought = asyncio.Event(), asyncio.Event()

    async def die(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await moved.wait()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] == "m":
            await thought.wait()
        return await infer(request, body)

    a, b = engine({"m": "unloaded"}, die), engine({"cold": "loading"}, think)
    async with (
        loading(a, keepalive(1.0), b=b) as (fleet, _, client),
        connected(client.ends()[1]) as other,
    ):
        await client.send(CHAT.request())
        await until(lambda: len(a.inference) == 1)
        b.models["m"] = "loaded"
        await until(lambda: len(fleet.gateway.registry.snapshot.replicas["m"]) == 2)
        moved.set()
        await until(lambda: len(b.inference) == 1)
        await other.send(CHAT.request(model="cold"))
        await a_sign_of_life(other)
        thought.set()
        heard = await client.read_answer()
        assert heard.get("x-cortex-node") == "b"
        assert heard.body == CHAT.answer
