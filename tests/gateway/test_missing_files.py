"""Catalogue models whose files are only on some nodes: no healthy model is evicted for nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Fleet, running_fleet
from tests.gateway.reloading import is_on_disk, neurons, reloaded
from tests.waiting import until

M = Profile("m", vram_mb=18000, source="hf")
NO_FILE = "No file for 'hf:m': looked for m.gguf below /models."


def full(*loadable: str) -> FakeNeuron:
    """Return a node whose one device a healthy model fills; it lists its files if any are given."""
    files: dict[str, Any] = {"loadable": [{"id": name} for name in loadable]} if loadable else {}
    neuron = FakeNeuron(
        {"healthy": {"id": "healthy", "status": "loaded", "devices": [0], "vram_used_mb": 18000}},
        discovery=files | {"loadable_version": "1"} if loadable else {},
    )
    neuron.health = {"devices": [{"index": 0, "vram_used_mb": 18000, "vram_free_mb": 6000}]}
    if loadable:
        neuron.health["loadable_version"] = "1"
    return neuron


def lacks_it(
    neuron: FakeNeuron, status: int = 404, code: str | None = "model_not_found"
) -> FakeNeuron:
    async def refuse(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": NO_FILE, "code": code}, status=status)

    neuron.load_answer = refuse
    return neuron


def evicts(neuron: FakeNeuron) -> FakeNeuron:
    """Give memory back when a model is unloaded, as a real node does."""

    def unload(body: dict[str, Any]) -> web.Response:
        neuron.models.pop(body["model_id"], None)
        neuron.health["devices"] = [{"index": 0, "vram_used_mb": 0, "vram_free_mb": 24000}]
        return web.json_response({"status": "unloaded"})

    neuron.unload_answer = unload
    return neuron


async def test_a_healthy_model_is_not_evicted_where_the_file_is_missing() -> None:
    down = FakeNeuron(discovery={"loadable": [{"id": "m"}]})
    async with running_fleet(M, a=lacks_it(full("healthy")), b=down) as fleet:
        down.unreachable = True
        await until(lambda: not fleet.gateway.registry.snapshot.nodes["b"].healthy)
        refused = await fleet.ask()
        assert refused.status == 503
        assert refused.headers["x-cortex-code"] == "feasible_node_unhealthy"
        assert "only available on b, which is unhealthy" in refused.json["error"]["message"]
        assert fleet.neurons["a"].called("POST", "/models/unload") == []
        assert fleet.loads("a") == []
        down.unreachable = False
        await until(lambda: fleet.gateway.registry.snapshot.nodes["b"].healthy)
        assert (await fleet.ask()).headers["x-cortex-node"] == "b"


async def test_a_model_whose_file_no_node_has_is_an_invalid_request_in_both_dialects() -> None:
    async with running_fleet(M, a=full("healthy")) as fleet:
        refused = await fleet.ask()
        assert (refused.status, refused.headers["x-cortex-code"]) == (422, "no_feasible_neuron")
        assert refused.json["error"]["type"] == "invalid_request_error"
        assert "a: has no file for 'm'" in refused.json["error"]["message"]
        assert "Retry-After" not in refused.headers
        theirs = await fleet.ask(path="/v1/messages")
        assert (theirs.status, theirs.json["error"]["type"]) == (422, "invalid_request_error")
        explained = (await fleet.get("/api/explain?model=m")).json
        assert (explained["decision"], explained["code"]) == ("refuse", "no_feasible_neuron")
        (card,) = [
            card for card in (await fleet.get("/v1/models")).json["data"] if card["id"] == "m"
        ]
        assert card["feasible_on"] == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "model_not_found"),
        (404, None),
        (422, "no_such_quant"),
        (422, "unknown_harness"),
        (422, "model_too_large"),
        (422, None),
    ],
)
async def test_a_node_that_lacks_the_file_is_asked_once(status: int, code: str | None) -> None:
    async with running_fleet(M, a=lacks_it(evicts(full()), status, code)) as fleet:
        for _ in range(3):
            refused = await fleet.ask()
            assert (refused.status, refused.headers["x-cortex-code"]) == (422, "no_feasible_neuron")
            assert f"a: {NO_FILE[:-1]}. Change" in refused.json["error"]["message"]
        assert len(fleet.loads("a")) == 1
        assert not fleet.gateway.registry.ledger.failures


async def test_every_node_is_asked_once_until_one_has_the_file() -> None:
    lacking = {name: lacks_it(FakeNeuron()) for name in "abc"}
    async with running_fleet(M, **lacking, d=FakeNeuron()) as fleet:
        served = await fleet.ask()
        assert (served.status, served.headers["x-cortex-node"]) == (200, "d")
        assert [len(fleet.loads(name)) for name in "abcd"] == [1, 1, 1, 1]


def restart(fleet: Fleet, neuron: FakeNeuron) -> None:
    neuron.started = time.monotonic()


def add_file(fleet: Fleet, neuron: FakeNeuron) -> None:
    neuron.discovery["loadable"] = [{"id": "x"}, {"id": "m"}]
    neuron.discovery["loadable_version"] = neuron.health["loadable_version"] = "2"


@pytest.mark.parametrize("change", [restart, add_file])
async def test_a_node_that_may_have_the_file_now_is_asked_again(
    change: Callable[[Fleet, FakeNeuron], None],
) -> None:
    neuron = lacks_it(FakeNeuron(discovery={"loadable_version": "1"}))
    neuron.health["loadable_version"] = "1"
    neuron.started -= 1000
    async with running_fleet(M, a=neuron) as fleet:
        assert (await fleet.ask()).status == 422
        neuron.load_answer = neuron._load
        change(fleet, neuron)
        await until(lambda: not fleet.gateway.registry.ledger.unloadable)
        assert (await fleet.ask()).headers["x-cortex-node"] == "a"
        assert len(fleet.loads("a")) == 2


async def test_reload_makes_a_node_feasible_again() -> None:
    neuron = lacks_it(FakeNeuron())
    async with running_fleet(M, a=neuron) as fleet:
        assert (await fleet.ask()).status == 422
        neuron.load_answer = neuron._load
        is_on_disk(fleet, neurons=neurons(a=neuron), models=(M,))
        await reloaded(fleet, neurons=neurons(a=neuron), models=(M,))
        assert (await fleet.ask()).status == 200


async def test_operator_load_asks_the_node_again_and_reports_its_words() -> None:
    neuron = lacks_it(FakeNeuron(discovery={"loadable": [{"id": "x"}]}))
    async with running_fleet(M, a=neuron) as fleet:
        body = {"node": "a"}

        async def load() -> tuple[int, Any]:
            url = f"{fleet.admin_url}/api/models/m/load"
            async with fleet.client.post(url, json=body) as answer:
                return answer.status, await answer.json()

        status, answer = await load()
        assert (status, answer["error"]["code"]) == (422, "no_feasible_neuron")
        assert NO_FILE[:-1] in answer["error"]["message"]
        assert (await fleet.ask()).status == 422
        neuron.load_answer = neuron._load
        assert (await load())[0] == 200
        assert not fleet.gateway.registry.ledger.unloadable
