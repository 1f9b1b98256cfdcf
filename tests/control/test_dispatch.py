from __future__ import annotations

import asyncio

from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling
from cortexd.config.units import Duration
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
