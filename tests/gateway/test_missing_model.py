"""A node that answers that it does not have the model it was asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading, Polling
from cortexd.config.units import Duration
from cortexd.wire.neuron import LOADED, UNLOADED
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet

# Polled once: what the gateway knows is out of date as soon as a test changes the node.
RARELY = Config(
    polling=Polling(interval=Duration(3600), timeout=Duration(10), unhealthy_after=3),
    loading=Loading(timeout=Duration(60), keepalive=Duration(0.05)),
)
M = Profile(id="m")


def not_found(model: str = "m") -> web.Response:
    error = {
        "message": f"The model `{model}` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    return web.json_response({"error": error}, status=404)


def serves_what_it_has(node: FakeNeuron) -> None:
    """Have a node refuse models that it does not have, as engines do."""
    serve = node.infer

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] not in node.models:
            return not_found(body["model"])
        return await serve(request, body)

    node.infer = infer


@pytest.mark.parametrize("stream", [False, True])
async def test_model_that_its_node_lost_is_loaded_again(stream: bool) -> None:
    node = FakeNeuron({"m": LOADED})
    serves_what_it_has(node)
    async with running_fleet(M, config=RARELY, a=node) as fleet:
        assert (await fleet.ask()).status == 200
        del node.models["m"]
        answer = await fleet.ask(stream=stream)
        assert (answer.status, answer.headers["x-cortex-route"]) == (200, "cold")
        assert b"model_not_found" not in answer.body
        assert b"does not exist" not in answer.body
        assert len(fleet.loads("a")) == 1
        assert await fleet.metric("cortexd_upstream_retries_total", reason="model_missing") == 1


async def test_model_that_its_node_unloaded_is_started_there_again() -> None:
    node = FakeNeuron({"m": LOADED})
    serve, refused = node.infer, 0

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal refused
        if not refused:
            refused += 1
            node.models["m"] = UNLOADED
            return not_found()
        return await serve(request, body)

    node.infer = infer
    async with running_fleet(config=RARELY, a=node) as fleet:
        answer = await fleet.ask()
        assert (answer.status, answer.headers["x-cortex-route"]) == (200, "lazy")


async def test_requests_that_meet_a_lost_model_at_once_share_one_load() -> None:
    node = FakeNeuron({"m": LOADED})
    serves_what_it_has(node)
    async with running_fleet(M, config=RARELY, a=node) as fleet:
        del node.models["m"]
        answers = await asyncio.gather(*(fleet.ask() for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
        assert len(fleet.loads("a")) == 1


async def test_model_that_no_node_has_any_more_is_refused_by_the_gateway() -> None:
    node = FakeNeuron({"m": LOADED})
    serves_what_it_has(node)
    async with running_fleet(config=RARELY, a=node) as fleet:
        del node.models["m"]
        answer = await fleet.ask()
        assert answer.status == 404
        assert answer.headers["x-cortex-code"] == "model_not_found"
        assert "no node has it" in answer.json["error"]["message"]


async def test_node_that_lists_what_it_does_not_have_is_not_asked_for_ever() -> None:
    node = FakeNeuron({"m": LOADED})

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return not_found()

    node.infer = infer
    async with running_fleet(M, config=RARELY, a=node) as fleet:
        answer = await fleet.ask()
        assert answer.status == 502
        assert answer.headers["x-cortex-code"] == "upstream_failed"
        assert "a lists the model 'm'" in answer.json["error"]["message"]
        assert "does not exist" in answer.json["error"]["message"]
        assert len(node.inference) == 1


async def test_node_that_refuses_every_lazy_start_is_not_asked_for_ever() -> None:
    node = FakeNeuron({"m": UNLOADED})

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return not_found()

    node.infer = infer
    async with running_fleet(config=RARELY, a=node) as fleet:
        answer = await fleet.ask()
        assert (answer.status, answer.headers["x-cortex-code"]) == (502, "upstream_failed")
        assert len(node.inference) == 3


async def test_another_replica_serves_a_model_that_one_node_lost() -> None:
    liar, other = FakeNeuron({"m": LOADED}), FakeNeuron({"m": LOADED})

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return not_found()

    liar.infer = infer
    async with running_fleet(config=RARELY, a=liar, b=other) as fleet:
        for turn in range(8):
            answer = await fleet.ask(messages=[{"role": "user", "content": f"turn {turn}"}])
            assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")
        assert len(liar.inference) <= 2  # then it is known to fail, and chosen last


async def test_stream_that_was_opened_while_waiting_goes_on_where_the_model_is_loaded() -> None:
    """Keep-alives are no answer: what comes after them may still be tried again."""
    node = FakeNeuron({"m": UNLOADED})
    serve, opened = node.infer, asyncio.Event()

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if "m" not in node.models or not opened.is_set():
            del node.models["m"]
            await opened.wait()
            return not_found()
        return await serve(request, body)

    node.infer = infer
    async with (
        running_fleet(M, config=RARELY, a=node) as fleet,
        fleet.client.post(
            f"{fleet.url}/v1/chat/completions", json={"model": "m", "messages": [], "stream": True}
        ) as response,
    ):
        assert response.status == 200  # the gateway's own head: the node has not answered
        opened.set()
        body = await response.read()
        assert body.endswith(b"data: [DONE]\n\n")
        assert b"error" not in body
        assert len(fleet.loads("a")) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"detail":"Not Found"}'),
        (404, b'{"error":{"message":"Response with id \'r\' not found.","code":404}}'),
        (404, b""),
        (400, b'{"error":{"message":"temperature must be a number","type":"BadRequestError"}}'),
        (404, json.dumps({"error": {"message": "x" * 100_000}}).encode()),
        (422, b"\x00\xff not text"),
    ],
    ids=["path", "response", "empty", "bad request", "long", "binary"],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_other_error_answers_pass_unchanged(status: int, body: bytes, chunked: bool) -> None:
    node = FakeNeuron({"m": LOADED})

    async def infer(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"x-engine": "its own"})
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = len(body)
        await response.prepare(request)
        for at in range(0, len(body), 7000):
            await response.write(body[at : at + 7000])
        return response

    node.infer = infer
    async with running_fleet(config=RARELY, a=node) as fleet:
        for _ in range(2):  # the second time on the connection of the first
            answer = await fleet.ask()
            assert (answer.status, answer.body) == (status, body)
            assert answer.headers["x-engine"] == "its own"
        assert len(node.inference) == 2
