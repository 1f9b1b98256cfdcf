"""No dead air: what callers see on the wire while their model is loading."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from cortexd.control import coldload
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
from tests.gateway.fleet import until
from tests.gateway.kept import a_sign_of_life, heard_over, keepalive, loading


@in_every_dialect
async def test_a_stream_whose_model_loads_for_long_is_kept_alive_and_whole(
    dialect: Dialect,
) -> None:
    async with loading() as (_, neuron, client):
        await client.send(dialect.request())
        heard = await heard_over(client, neuron)
        assert heard.status == 200
        said, answer = dialect.split(heard.body)
        assert (
            said.count(b"cortexd loading m on a\n" if dialect is not MESSAGES else b"ping\n") >= 3
        )
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
        *comments, empty = said.strip().split(b"\n")
        assert set(comments) == {b": cortexd loading m"}
        assert empty.startswith(b"data: ")
        assert answer == CHAT.answer


async def test_comments_say_how_far_the_node_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldload, "TICK", 0.01)
    async with loading() as (_, neuron, client):
        await client.send(CHAT.request())
        first = await a_sign_of_life(client)
        assert first.endswith(b"\r\n: cortexd loading m on a\n\r\n")
        for fraction, said in ((0.42, b" 42%"), (1, b" 100%")):
            progress = {"stage": "weights", "fraction": fraction}
            neuron.models["m"] = {"id": "m", "status": "loading", "progress": progress}
            await client.read_until(b": cortexd loading m on a" + said + b"\n")
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
        assert comment in said.split(b"\n")
        assert answer == CHAT.answer
        assert_ended_well(heard)
        (name,) = heard.all("x-cortex-model")
        assert name.isascii()
        assert name.isprintable()


async def test_responses_stream_has_comments_and_only_the_engines_own_events() -> None:
    async with loading() as (_, neuron, client):
        await client.send(RESPONSES.request("x-request-id: req_mine"))
        heard = await heard_over(client, neuron, signs=4)
        said, answer = RESPONSES.split(heard.body)
        default, *comments = said.strip().split(b"\n")
        assert default == b"event: message"
        assert set(comments) == {b": cortexd loading m on a"}
        assert len(comments) >= 4
        assert answer == RESPONSES.answer
        assert b"req_mine" not in heard.body


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
            assert said.startswith(b": cortexd loading m on a\n")
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
        while client.unread:
            so_far += await a_sign_of_life(client)
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


@in_every_dialect
async def test_http_1_0_stream_is_kept_alive_and_ends_with_its_connection(
    dialect: Dialect,
) -> None:
    async with loading() as (_, neuron, client):
        await client.send(dialect.request(version="1.0"))
        # Without chunks, so there is no end of one to wait for.
        end = b'ping"}\n\n' if dialect is MESSAGES else b": cortexd loading m on a\n"
        so_far = b"".join([await client.read_until(end) for _ in range(3)])
        neuron.release.set()
        heard = await client.read_answer(so_far=so_far)
        assert heard.get("transfer-encoding") is None
        assert heard.get("connection") == "close"
        assert heard.complete
        assert dialect.split(heard.body)[1] == dialect.answer
        assert client.ended == "eof"


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
