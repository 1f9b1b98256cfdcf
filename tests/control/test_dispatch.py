from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling
from cortexd.config.units import Duration
from cortexd.control.dispatch import Dispatcher, RouteDecision
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.routing import Query
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import Health, Model, ModelLoad
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet
from tests.waiting import until

SLOW = Config(polling=Polling(Duration(3600), Duration(2), unhealthy_after=2))


async def test_the_replica_is_claimed_while_it_answers_and_free_after() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    done = asyncio.Event()

    async def infer(request: web.Request, body: object) -> web.StreamResponse:
        await done.wait()
        return web.json_response({})

    neuron.infer = infer
    async with running_fleet(a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: bool(neuron.inference))
        ledger = fleet.gateway.registry.ledger
        assert ledger.in_flight == {("a", "m"): 1}
        assert await fleet.metric("cortexd_in_flight", model="m", node="a") == 1
        done.set()
        await asking
        await until(lambda: not ledger.in_flight)
        assert ("a", "m") in ledger.last_access


async def test_the_registry_knows_of_a_load_before_any_poll_does() -> None:
    async with running_fleet(Profile("m"), a=FakeNeuron(), config=SLOW) as fleet:
        await fleet.ask()
        assert fleet.gateway.registry.snapshot.replicas["m"][0].status == "loaded"


async def test_the_registry_knows_of_a_lazy_start_before_any_poll_does() -> None:
    async with running_fleet(a=FakeNeuron({"m": "unloaded"}), config=SLOW) as fleet:
        assert (await fleet.ask()).headers["x-cortex-route"] == "lazy"
        assert (await fleet.ask()).headers["x-cortex-route"] == "loaded"


async def test_a_lazy_start_that_fails_leaves_the_model_unloaded() -> None:
    neuron = FakeNeuron({"m": "unloaded"})

    async def infer(request: web.Request, body: object) -> web.StreamResponse:
        return web.json_response({"error": "out of memory"}, status=507)

    neuron.infer = infer
    async with running_fleet(a=neuron, config=SLOW) as fleet:
        answer = await fleet.ask()
        assert (answer.status, answer.json) == (507, {"error": "out of memory"})
        assert fleet.gateway.registry.snapshot.replicas["m"][0].status == "unloaded"
        assert (await fleet.ask()).headers["x-cortex-route"] == "lazy"


async def test_a_model_that_turns_out_not_to_be_there_is_loaded_anew() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with running_fleet(Profile("m"), a=neuron, config=SLOW) as fleet:
        neuron.models.clear()  # and no poll has seen it
        answer = await fleet.ask()
        assert (answer.status, answer.headers["x-cortex-route"]) == (200, "cold")
        assert len(fleet.loads("a")) == 1


@pytest.mark.parametrize(
    ("mine", "other", "reported", "weight", "expected"),
    [
        (1, 0, 0, 1.0, True),
        (1, 1, 0, 1.0, False),
        (3, 2, 0, 1.0, True),
        (3, 3, 0, 1.0, False),
        (3, 0, 3, 1.0, False),
        (3, 4, 0, 2.0, True),
    ],
    ids=[
        "as idle as the first would be",
        "busier",
        "as busy as the first would be without us",
        "as busy as the first is with us",
        "busy with the requests of others",
        "busier, and stronger",
    ],
)
async def test_another_replica_is_better_by_its_score(
    mine: int, other: int, reported: int, weight: float, expected: bool
) -> None:
    nodes = [Node("a", "http://a"), Node("b", "http://b", weight=weight)]
    registry = Registry(nodes, Catalogue(), Events(), unhealthy_after=3)
    nothing = cast(Any, None)
    dispatcher = Dispatcher(registry, nothing, nothing, nothing, nothing)
    now = dispatcher.now()
    for name, count in (("a", 0), ("b", reported)):
        health = Health(models=[ModelLoad("m", in_flight=count)])
        registry.observe(name, Observation(now, now, models=[Model("m", "loaded")], health=health))
    leases = [registry.lease("a", "m") for _ in range(mine)]
    for _ in range(other):
        registry.lease("b", "m")
    replica = registry.replica("a", "m")
    assert replica is not None
    route = RouteDecision(replica, "http://a", "loaded", leases[0])
    assert dispatcher.has_better(Query("m", {"a"}), route) is expected
    assert not dispatcher.has_better(Query("m", {"a", "b"}), route)
