"""No dead air: what callers see on the wire while their model is loading."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Gateway, Loading, Polling
from cortexd.config.units import Duration
from cortexd.control import coldload
from tests.fakes import FakeNeuron
from tests.functional.raw import Client, Heard, connected
from tests.gateway.dialects import (
    CHAT,
    MESSAGES,
    RESPONSES,
    Dialect,
    assert_ended_well,
    engine,
    in_every_dialect,
    infer,
)
from tests.gateway.fleet import Fleet, running_fleet, until

SOON, NEVER = 0.03, 60.0  # seconds of silence; a test is over long before the second


def keepalive(seconds: float = SOON, *, timeout: float = 60.0, expose_route: bool = True) -> Config:
    return Config(
        polling=Polling(interval=Duration(0.05), timeout=Duration(2), unhealthy_after=2),
        loading=Loading(timeout=Duration(timeout), keepalive=Duration(seconds)),
        gateway=Gateway(expose_route=expose_route),
    )


@asynccontextmanager
async def loading(
    neuron: FakeNeuron | None = None, config: Config | None = None, model: str = "m", **more: Any
) -> AsyncIterator[tuple[Fleet, FakeNeuron, Client]]:
    """A gateway before one node whose loads wait, and a connection to it."""
    neuron = neuron or engine()
    async with (
        running_fleet(Profile(model), config=config or keepalive(), a=neuron, **more) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        yield fleet, neuron, client


async def a_sign_of_life(client: Client) -> bytes:
    """One more, with the head if it is the first."""
    return await client.read_until(b"\n\n\r\n")


async def heard_over(client: Client, neuron: FakeNeuron, signs: int = 3) -> Heard:
    """The answer of a model that is loaded after so many signs of life."""
    so_far = b"".join([await a_sign_of_life(client) for _ in range(signs)])
    neuron.release.set()
    return await client.read_answer(so_far=so_far)


@in_every_dialect
async def test_a_stream_whose_model_loads_for_long_is_kept_alive_and_whole(
    dialect: Dialect,
) -> None:
    async with loading() as (_, neuron, client):
        await client.send(dialect.request())
        heard = await heard_over(client, neuron)
        assert heard.status == 200
        said, answer = dialect.split(heard.body)
        assert said.count(b"\n\n") >= 3
        assert answer == dialect.answer
        assert_ended_well(heard)
        # The connection is as good as before.
        again = await client.ask(dialect.request())
        assert (again.get("x-cortex-route"), again.body) == ("loaded", dialect.answer)


@in_every_dialect
async def test_the_early_head_says_what_is_known_and_nothing_else(dialect: Dialect) -> None:
    async with loading() as (_, neuron, client):
        await client.send(dialect.request("x-request-id: req_mine"))
        heard = await heard_over(client, neuron, signs=1)
        assert heard.get("content-type") == "text/event-stream"
        assert heard.get("cache-control") == "no-cache"
        assert heard.get("x-accel-buffering") == "no"
        assert heard.get("x-request-id") == "req_mine"
        assert heard.get("request-id") == ("req_mine" if dialect is MESSAGES else None)
        assert heard.get("x-cortex-model") == "m"
        assert heard.get("x-cortex-route") == "cold"
        assert heard.get("x-cortex-cold-start") == "true"
        assert heard.get("x-cortex-node") is None
        assert heard.get("content-length") is None


async def test_the_early_head_hides_the_route_where_it_is_hidden() -> None:
    async with loading(config=keepalive(expose_route=False)) as (_, neuron, client):
        await client.send(CHAT.request())
        heard = await heard_over(client, neuron)
        assert heard.get("x-request-id") is not None
        assert not [name for name, _ in heard.headers if name.startswith("x-cortex")]
        said, answer = CHAT.split(heard.body)
        assert set(said.split(b"\n\n")) == {b": cortexd loading m", b""}
        assert answer == CHAT.answer


async def test_comments_say_how_far_the_node_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldload, "TICK", 0.01)
    async with loading() as (_, neuron, client):
        await client.send(CHAT.request())
        first = await a_sign_of_life(client)
        assert first.endswith(b"\r\n: cortexd loading m on a\n\n\r\n")
        for fraction, said in ((0.42, b" 42%"), (1, b" 100%")):
            progress = {"stage": "weights", "fraction": fraction}
            neuron.models["m"] = {"id": "m", "status": "loading", "progress": progress}
            await client.read_until(b": cortexd loading m on a" + said + b"\n\n")
        neuron.release.set()
        assert (await client.read_until(CHAT.answer[-5:])).endswith(CHAT.answer[-5:])


@pytest.mark.parametrize(
    ("model", "comment"),
    [
        ("Qwen/Qwen3-1.7B", b": cortexd loading Qwen/Qwen3-1.7B on a"),
        ("a b", b": cortexd loading a b on a"),
        ("m\r\n\r\nevent\n\n", b": cortexd loading m????event?? on a"),
        ("\x1b[31m\u202e", b": cortexd loading ?[31m? on a"),
        ("modèle-\U0001f389", rb": cortexd loading mod\xe8le-\U0001f389 on a"),
    ],
)
async def test_no_model_name_gets_out_of_its_comment(model: str, comment: bytes) -> None:
    async with loading(model=model) as (_, neuron, client):
        await client.send(CHAT.request(model=model))
        heard = await heard_over(client, neuron, signs=2)
        said, answer = CHAT.split(heard.body)
        assert comment in said.split(b"\n\n")
        assert answer == CHAT.answer
        assert_ended_well(heard)
        (name,) = heard.all("x-cortex-model")
        assert name.isascii()
        assert name.isprintable()


async def test_responses_are_kept_alive_in_the_order_that_sdks_insist_on() -> None:
    async with loading() as (_, neuron, client):
        await client.send(RESPONSES.request("x-request-id: req_mine"))
        heard = await heard_over(client, neuron, signs=4)
        said, answer = RESPONSES.split(heard.body)
        events = [json.loads(event.partition(b"data: ")[2]) for event in said.split(b"\n\n")[:-1]]
        kinds = ["response.created"] + ["response.in_progress"] * (len(events) - 1)
        assert len(events) >= 4
        assert [event["type"] for event in events] == kinds
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert {event["response"]["id"] for event in events} == {"resp_req_mine"}
        assert {event["response"]["status"] for event in events} == {"in_progress"}
        # The engine's own follows unchanged.
        assert answer == RESPONSES.answer


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


async def test_http_1_0_waits_for_a_real_status() -> None:
    async with loading() as (_, neuron, client), connected(client.ends()[1]) as other:
        await client.send(CHAT.request(version="1.0"))
        await other.send(CHAT.request())
        for _ in range(5):
            await a_sign_of_life(other)
        neuron.release.set()
        heard = await client.read_answer()
        assert (heard.status, heard.get("x-cortex-node")) == (200, "a")
        assert heard.body == CHAT.answer


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
async def test_a_slow_prompt_on_a_loaded_model_gets_no_early_head(
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


@in_every_dialect
async def test_who_joins_a_load_is_kept_alive_too(dialect: Dialect) -> None:
    async with loading() as (fleet, neuron, client):
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: bool(fleet.loads("a")))
        await client.send(dialect.request())
        heard = await heard_over(client, neuron)
        assert heard.get("x-cortex-route") == "cold"
        assert dialect.split(heard.body)[1] == dialect.answer
        assert (await asking).status == 200
        assert len(fleet.loads("a")) == 1


@in_every_dialect
async def test_who_joins_a_load_that_others_began_is_kept_alive_too(dialect: Dialect) -> None:
    neuron = engine({"m": "loading"})
    async with loading(neuron) as (fleet, _, client):
        await client.send(dialect.request())
        so_far = b"".join([await a_sign_of_life(client) for _ in range(3)])
        neuron.models["m"] = "loaded"
        heard = await client.read_answer(so_far=so_far)
        assert heard.get("x-cortex-route") == "cold"
        assert dialect.split(heard.body)[1] == dialect.answer
        assert not fleet.loads("a")


@in_every_dialect
async def test_a_lazy_start_is_kept_alive_too(dialect: Dialect) -> None:
    awake = asyncio.Event()

    async def wake(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await awake.wait()
        return await infer(request, body)

    async with loading(engine({"m": "unloaded"}, wake)) as (fleet, _, client):
        await client.send(dialect.request())
        so_far = b"".join([await a_sign_of_life(client) for _ in range(3)])
        awake.set()
        heard = await client.read_answer(so_far=so_far)
        assert heard.get("x-cortex-route") == "lazy"
        assert heard.get("x-cortex-node") is None
        said, answer = dialect.split(heard.body)
        assert answer == dialect.answer
        if dialect is CHAT:
            assert said.startswith(b": cortexd loading m on a\n\n")
        assert not fleet.loads("a")


@pytest.mark.parametrize("head_first", [False, True])
@in_every_dialect
async def test_it_goes_on_until_the_first_byte_of_the_answer(
    dialect: Dialect, head_first: bool
) -> None:
    """A load, then an engine that thinks, before its head or after it."""
    thought, thinks = asyncio.Event(), asyncio.Event()

    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if head_first:
            await response.prepare(request)
        thinks.set()
        await thought.wait()
        await response.prepare(request)
        await response.write(dialect.answer)
        return response

    async with loading(engine(answer=think)) as (_, neuron, client):
        await client.send(dialect.request())
        so_far = await a_sign_of_life(client)
        neuron.release.set()
        await thinks.wait()
        client.unread.clear()
        for _ in range(4):
            so_far += await a_sign_of_life(client)
        thought.set()
        heard = await client.read_answer(so_far=so_far)
        assert dialect.split(heard.body)[1] == dialect.answer
        assert_ended_well(heard)


@in_every_dialect
async def test_who_waits_for_a_turn_after_the_load_is_kept_alive_too(dialect: Dialect) -> None:
    thought = asyncio.Event()

    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await thought.wait()
        return await infer(request, body)

    neuron = engine(answer=think)
    neuron.health = {"models": [{"id": "m", "max_in_flight": 1, "max_queue_depth": 0}]}
    async with loading(neuron) as (fleet, _, client):
        asking = [asyncio.create_task(fleet.ask()) for _ in range(2)]
        await until(lambda: fleet.gateway.table.waiting() == {"m": 2})
        neuron.release.set()
        await until(lambda: len(neuron.inference) == 1)
        # One is served, one waits for its turn, and the third comes when the load is over.
        await client.send(dialect.request())
        so_far = b"".join([await a_sign_of_life(client) for _ in range(3)])
        assert len(neuron.inference) == 1
        thought.set()
        heard = await client.read_answer(so_far=so_far)
        assert heard.get("x-cortex-route") == "cold"
        assert dialect.split(heard.body)[1] == dialect.answer
        assert {answer.status for answer in await asyncio.gather(*asking)} == {200}


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
        assert (heard.get("x-cortex-node"), heard.get("x-cortex-route")) == ("b", "loaded")
        assert heard.body == CHAT.answer


async def test_a_client_that_leaves_a_kept_stream_leaves_nothing_behind() -> None:
    async with loading() as (fleet, neuron, client):
        await client.send(CHAT.request())
        await a_sign_of_life(client)
        client.reset()
        await until(lambda: not fleet.gateway.table.waiting()["m"])
        neuron.release.set()
        await until(lambda: not len(fleet.gateway.table))
        assert not neuron.inference
        assert await fleet.metric("cortexd_requests_total", status="499") == 1
