"""Requests that only count tokens: no other model is unloaded for them."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.gateway.accounting import TOKEN_PATHS
from cortexd.wire.neuron import LOADED, UNLOADED
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet
from tests.waiting import until

BIG = Profile(id="big", vram_mb=20_000)
M = Profile(id="m", vram_mb=20_000)
PATHS = sorted(TOKEN_PATHS)


def resident(model: str, mb: int = 20_000) -> dict[str, Any]:
    return {"id": model, "status": LOADED, "vram_used_mb": mb, "devices": [0]}


def full() -> FakeNeuron:
    """Return a node of 24,000 MiB with one model of 20,000."""
    return FakeNeuron({"big": resident("big")})


@pytest.mark.parametrize("path", PATHS)
async def test_token_count_is_answered_where_the_model_is_loaded(path: str) -> None:
    node = FakeNeuron({"m": LOADED})
    async with running_fleet(M, a=node) as fleet:
        answer = await fleet.ask(path=path)
        assert (answer.status, answer.headers["x-cortex-route"]) == (200, "loaded")
        assert ("POST", path) in [(method, target) for method, target, _ in node.calls]


@pytest.mark.parametrize("path", PATHS)
async def test_token_count_unloads_no_other_model(path: str) -> None:
    node = full()
    async with running_fleet(M, BIG, a=node) as fleet:
        answer = await fleet.ask(path=path)
        is_anthropic = path.startswith("/v1/messages")
        assert answer.status == (404 if is_anthropic else 503)
        assert answer.headers["x-cortex-code"] == "model_not_loaded"
        assert "Retry-After" not in answer.headers
        assert "'m' is not loaded" in answer.json["error"]["message"]
        if is_anthropic:
            assert answer.json["error"]["type"] == "not_found_error"
        assert not node.called("POST", "/models/unload")
        assert not fleet.loads("a")
        assert (await fleet.ask()).status == 200  # what a real request does
        assert node.called("POST", "/models/unload")


async def test_token_count_loads_into_free_memory() -> None:
    node = FakeNeuron()
    async with running_fleet(M, a=node) as fleet:
        answer = await fleet.ask(path="/tokenize")
        assert (answer.status, answer.headers["x-cortex-route"]) == (200, "cold")
        assert len(fleet.loads("a")) == 1


async def test_token_count_loads_no_model_of_unknown_size_beside_another() -> None:
    node = full()
    async with running_fleet(Profile(id="m"), a=node) as fleet:
        assert (await fleet.ask(path="/tokenize")).headers["x-cortex-code"] == "model_not_loaded"
        assert not fleet.loads("a")
        del node.models["big"]
        await until(lambda: not fleet.gateway.registry.snapshot.nodes["a"].models)
        assert (await fleet.ask(path="/tokenize")).status == 200


async def test_token_count_wakes_a_model_only_where_its_node_evicts_nothing() -> None:
    node = full()
    node.models["m"] = UNLOADED
    async with running_fleet(a=node) as fleet:
        answer = await fleet.ask(path="/tokenize")
        assert (answer.status, answer.headers["x-cortex-code"]) == (503, "model_not_loaded")
        assert not node.inference
        del node.models["big"]
        await until(lambda: "big" not in fleet.gateway.registry.snapshot.nodes["a"].models)
        answer = await fleet.ask(path="/tokenize")
        assert (answer.status, answer.headers["x-cortex-route"]) == (200, "lazy")


async def test_token_count_waits_for_a_load_that_is_under_way() -> None:
    node = FakeNeuron()
    node.release.clear()
    async with running_fleet(M, a=node) as fleet:
        first = asyncio.create_task(fleet.ask())
        await until(lambda: bool(fleet.loads("a")))
        count = asyncio.create_task(fleet.ask(path="/tokenize"))
        await until(lambda: fleet.gateway.table.waiting() == {"m": 2})
        node.release.set()
        assert {(await first).status, (await count).status} == {200}
        assert len(fleet.loads("a")) == 1


def full_after_all(node: FakeNeuron, times: int) -> asyncio.Event:
    """Have a node refuse loads for its memory, once the event that is returned is set."""
    load, goes_on, left = node.load_answer, asyncio.Event(), times

    async def answer(body: dict[str, Any]) -> web.Response:
        nonlocal left
        await goes_on.wait()
        left -= 1
        if left >= 0:
            return web.json_response({"error": "full", "code": "insufficient_vram"}, status=507)
        return await load(body)

    node.load_answer = answer
    return goes_on


async def test_load_for_a_token_count_that_does_not_fit_evicts_nothing_and_is_no_failure() -> None:
    node = FakeNeuron({"small": resident("small", 100)})
    full_after_all(node, 1).set()
    async with running_fleet(M, a=node) as fleet:
        answer = await fleet.ask(path="/tokenize")
        assert (answer.status, answer.headers["x-cortex-code"]) == (503, "model_not_loaded")
        assert not node.called("POST", "/models/unload")
        assert not fleet.gateway.registry.ledger.failures
        assert (await fleet.ask()).status == 200  # no back-off: a real request loads it


async def test_request_that_joins_the_load_of_a_token_count_has_room_made_for_it() -> None:
    node = FakeNeuron({"small": resident("small", 100)})
    goes_on = full_after_all(node, 1)
    async with running_fleet(M, a=node) as fleet:
        count = asyncio.create_task(fleet.ask(path="/tokenize"))
        await until(lambda: bool(fleet.loads("a")))
        real = asyncio.create_task(fleet.ask())
        await until(lambda: fleet.gateway.table.waiting() == {"m": 2})
        goes_on.set()
        assert {(await count).status, (await real).status} == {200}
        assert node.called("POST", "/models/unload")


async def test_refusals_that_are_about_the_model_itself_stay_the_same() -> None:
    async with running_fleet(Profile(id="huge", vram_mb=90_000), a=FakeNeuron()) as fleet:
        answer = await fleet.ask("what", path="/tokenize")
        assert (answer.status, answer.headers["x-cortex-code"]) == (404, "model_not_found")
        answer = await fleet.ask("huge", path="/tokenize")
        assert answer.headers["x-cortex-code"] == "no_feasible_neuron"


async def test_anthropic_sdk_does_not_repeat_a_count_that_is_refused() -> None:
    """Claude Code estimates after any error; its SDK repeats a 5xx first."""
    node = full()
    async with running_fleet(M, BIG, a=node) as fleet:
        client = anthropic.AsyncAnthropic(base_url=fleet.url, api_key="none", max_retries=2)
        async with client:
            with pytest.raises(anthropic.NotFoundError) as refused:
                await client.messages.count_tokens(
                    model="m", messages=[{"role": "user", "content": "hi"}]
                )
        assert refused.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
        requests = await fleet.metric(
            "cortexd_requests_total", path="/v1/messages/count_tokens", status="404"
        )
        assert requests == 1
