"""Aliases, and those whose model is nowhere."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling
from cortexd.config.units import Duration
from cortexd.wire.neuron import LOADED
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, Fleet, running_fleet
from tests.waiting import until

ALIASES = {"typo": "Qwen/Qwen3-8", "good": "m", "own": "only"}
ONCE = Config(polling=Polling(interval=Duration(0.05), timeout=Duration(5), unhealthy_after=1))


def node() -> FakeNeuron:
    return FakeNeuron({"only": LOADED})


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "alias" in record.getMessage()
    ]


async def polled_again(fleet: Fleet, name: str = "a") -> None:
    before = fleet.gateway.registry.snapshot.nodes[name].last_contact
    await until(lambda: fleet.gateway.registry.snapshot.nodes[name].last_contact != before)


async def test_refusal_names_the_alias_and_its_model() -> None:
    async with running_fleet(Profile(id="m"), aliases=ALIASES, a=node()) as fleet:
        for path in ("/v1/chat/completions", "/v1/messages", "/tokenize"):
            answer = await fleet.ask("typo", path=path)
            assert (answer.status, answer.headers["x-cortex-code"]) == (404, "model_not_found")
            message = answer.json["error"]["message"]
            assert message.startswith("The alias 'typo' points to the model 'Qwen/Qwen3-8'")
            assert "[aliases]" in message
        direct = (await fleet.ask("Qwen/Qwen3-8")).json["error"]["message"]
        assert direct.startswith("The model 'Qwen/Qwen3-8' does not exist")


async def test_every_other_refusal_names_the_alias_beside_the_model() -> None:
    profile = Profile(id="m", vram_mb=90_000)
    async with running_fleet(profile, aliases={"small": "m"}, a=node()) as fleet:
        for stream in (False, True):
            answer = await fleet.ask("small", stream=stream)
            assert answer.headers["x-cortex-code"] == "no_feasible_neuron"
            assert "the model 'm' (alias 'small')" in answer.json["error"]["message"]
        said = (await fleet.get("/api/explain?model=small")).json
        assert "the model 'm' (alias 'small')" in said["words"]


async def test_operator_is_told_of_the_alias_too() -> None:
    async with (
        running_fleet(Profile(id="m"), aliases=ALIASES, a=node()) as fleet,
        fleet.client.post(
            f"{fleet.admin_url}/api/models/typo/load", json={}, headers={}
        ) as response,
    ):
        error: dict[str, Any] = json.loads(await response.read())["error"]
        assert response.status == 404
        assert error["message"].startswith("The alias 'typo' points to the model 'Qwen/Qwen3-8'")


async def test_alias_without_a_model_is_marked_in_the_list() -> None:
    async with running_fleet(Profile(id="m"), aliases=ALIASES, a=node()) as fleet:
        cards = {card["id"]: card for card in (await fleet.get("/v1/models")).json["data"]}
        assert {name: cards[name]["status"] for name in ALIASES} == {
            "typo": "missing",
            "good": "unloaded",
            "own": "loaded",
        }
        assert cards["typo"]["alias_of"] == "Qwen/Qwen3-8"
        assert not cards["typo"]["loaded"]
        assert (await fleet.get("/v1/models/typo")).json["status"] == "missing"


async def test_alias_without_a_model_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    first = node()
    async with running_fleet(Profile(id="m"), config=ONCE, aliases=ALIASES, a=first) as fleet:
        await polled_again(fleet)
        assert len(warned(caplog)) == 1
        assert "the alias 'typo' points to the model 'Qwen/Qwen3-8'" in warned(caplog)[0]
        first.models["more"] = LOADED
        await until(lambda: "more" in fleet.gateway.registry.snapshot.replicas)
        del first.models["only"]  # what another alias needs is gone
        await until(lambda: len(warned(caplog)) == 2)
        assert "the alias 'own' points to the model 'only'" in warned(caplog)[1]
        await polled_again(fleet)
        assert len(warned(caplog)) == 2


async def test_model_of_an_alias_may_be_on_a_node_that_has_not_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    up, down = node(), node()
    down.unreachable = True
    async with running_fleet(config=ONCE, aliases={"typo": "x"}, a=up, down=down) as fleet:
        await polled_again(fleet)
        assert not warned(caplog)
        assert (await fleet.get("/v1/models/typo")).json["status"] == "unloaded"
        answer = await fleet.ask("typo")
        assert (answer.status, answer.headers["x-cortex-code"]) == (503, "feasible_node_unhealthy")
        assert "the model 'x' (alias 'typo')" in answer.json["error"]["message"].replace(
            "The", "the"
        )
        down.unreachable = False
        await until(lambda: len(warned(caplog)) == 1)
        assert (await fleet.get("/v1/models/typo")).json["status"] == "missing"


async def test_alias_with_a_known_model_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    aliases = {"good": "m", "own": "only"}
    config = Config(polling=FAST)
    async with running_fleet(Profile(id="m"), config=config, aliases=aliases, a=node()) as fleet:
        await polled_again(fleet)
        assert not warned(caplog)
        assert (await fleet.ask("own")).status == 200
