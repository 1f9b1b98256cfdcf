"""A model that only its node knows, whose load failed there: refused for a while, then retried."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.control import outcomes
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Fleet, running_fleet
from tests.waiting import eventually, until

BROKEN = {"id": "m", "status": "failed", "error": "file is truncated"}


def failure_count(fleet: Fleet) -> int:
    failure = fleet.gateway.registry.ledger.failures.get(("a", "m"))
    return failure.count if failure else 0


async def test_failed_model_is_refused_with_the_nodes_words_until_its_back_off_is_over() -> None:
    async with running_fleet(a=FakeNeuron({"m": BROKEN})) as fleet:
        for path in ("/v1/chat/completions", "/v1/messages"):
            refused = await fleet.ask(path=path)
            assert (refused.status, refused.headers["x-cortex-code"]) == (502, "cold_load_failed")
            assert (
                "a says file is truncated. It is tried again in"
                in (refused.json["error"]["message"])
            )
            assert 1 <= int(refused.headers["Retry-After"]) <= 15
        assert fleet.neurons["a"].inference == []
        # What else speaks of it says the same.
        (card,) = (await fleet.get("/v1/models")).json["data"]
        assert (card["id"], card["status"]) == ("m", "failed")
        assert (await fleet.get("/v1/models/m")).json["status"] == "failed"
        explained = (await fleet.get("/api/explain?model=m")).json
        assert (explained["decision"], explained["code"]) == ("refuse", "cold_load_failed")
        (verdict,) = explained["nodes"]
        assert "has failed there; a load failed: file is truncated; tried again" in verdict["words"]
        (node,) = (await fleet.get("/api/fleet")).json["nodes"]
        assert node["models"][0]["error"] == "file is truncated"


async def test_failed_model_is_tried_again_by_its_node_after_the_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outcomes, "FIRST_BACKOFF", 0.05)
    neuron = FakeNeuron({"m": BROKEN})
    async with running_fleet(a=neuron) as fleet:

        async def is_served() -> bool:
            answer = await fleet.ask()
            if answer.status == 200:
                assert answer.headers["x-cortex-route"] == "lazy"
                neuron.models["m"] = "loaded"
            return answer.status == 200

        await eventually(is_served)
        assert fleet.loads("a") == []
        await until(lambda: failure_count(fleet) == 0)
        assert (await fleet.ask()).headers["x-cortex-route"] == "loaded"


async def test_each_failed_attempt_doubles_the_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "FIRST_BACKOFF", 0.01)
    neuron = FakeNeuron({"m": BROKEN})

    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": "file is truncated"}, status=500)

    neuron.infer = fail
    async with running_fleet(a=neuron) as fleet:

        async def has_failed_often() -> bool:
            assert (await fleet.ask()).status in {500, 502}
            return failure_count(fleet) >= 4

        await eventually(has_failed_often)
        # A failure that stands is counted once, however often it is reported.
        assert len(neuron.inference) >= failure_count(fleet) - 1


async def test_failures_of_models_that_a_node_no_longer_lists_are_forgotten() -> None:
    neuron = FakeNeuron({"m": BROKEN, "x": "loaded"})
    async with running_fleet(a=neuron) as fleet:
        await until(lambda: failure_count(fleet) == 1)
        del neuron.models["m"]
        await until(lambda: failure_count(fleet) == 0)
        assert (await fleet.ask()).status == 404


async def test_failed_model_of_the_catalogue_is_loaded_again_after_the_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outcomes, "FIRST_BACKOFF", 0.05)
    async with running_fleet(Profile("m"), a=FakeNeuron({"m": BROKEN})) as fleet:

        async def is_served() -> bool:
            return (await fleet.ask()).status == 200

        await eventually(is_served)
        assert len(fleet.loads("a")) == 1


async def test_a_model_with_an_unknown_status_is_not_said_to_be_missing() -> None:
    async with running_fleet(a=FakeNeuron({"m": "hibernating"})) as fleet:
        refused = await fleet.ask()
        assert (refused.status, refused.headers["x-cortex-code"]) == (503, "model_unservable")
        assert "a status that this gateway does not know on a" in refused.json["error"]["message"]
