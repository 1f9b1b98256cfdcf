from __future__ import annotations

import asyncio

import pytest

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling
from cortexd.config.units import Duration
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet
from tests.waiting import until


def polling(interval: float, timeout: float = 2) -> Config:
    return Config(polling=Polling(Duration(interval), Duration(timeout), unhealthy_after=2))


async def test_a_hung_node_delays_no_other() -> None:
    hung = FakeNeuron()
    hung.answer_polls.clear()
    async with running_fleet(
        a=hung, b=FakeNeuron({"m": "loaded"}), config=polling(0.02, timeout=10), wait_settled=False
    ) as fleet:
        neuron = fleet.neurons["b"]
        await until(lambda: len(neuron.called("GET", "/models")) > 5)
        assert (await fleet.ask()).headers["x-cortex-node"] == "b"
        assert not fleet.gateway.registry.snapshot.settled


async def test_a_node_that_is_slow_to_answer_first_is_waited_for() -> None:
    slow = FakeNeuron({"m": "loaded"})
    slow.answer_polls.clear()
    async with running_fleet(
        Profile("m"), a=slow, b=FakeNeuron(), config=polling(0.02, timeout=10), wait_settled=False
    ) as fleet:
        await until(lambda: fleet.gateway.registry.snapshot.healthy == 1)
        known = asyncio.create_task(fleet.ask("m"))
        unknown = asyncio.create_task(fleet.ask("nobody"))
        await until(lambda: len(fleet.gateway.table) == 2)
        slow.answer_polls.set()
        answer = await known
        assert (answer.status, answer.headers["x-cortex-node"]) == (200, "a")
        assert answer.headers["x-cortex-route"] == "loaded"
        assert (await unknown).status == 404
        assert not fleet.loads("a")
        assert not fleet.loads("b")


async def test_a_node_that_never_answers_is_waited_for_no_longer_than_the_poll_may_take() -> None:
    hung = FakeNeuron()
    hung.answer_polls.clear()
    async with running_fleet(
        Profile("m"), a=hung, b=FakeNeuron(), config=polling(0.02, timeout=0.2), wait_settled=False
    ) as fleet:
        answer = await fleet.ask()
        assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")


async def test_the_hardware_is_asked_for_once_and_again_after_a_restart() -> None:
    neuron = FakeNeuron()
    neuron.started -= 1000
    async with running_fleet(a=neuron, config=polling(0.02)) as fleet:
        await until(lambda: len(neuron.called("GET", "/models")) > 5)
        assert len(neuron.called("GET", "/discovery")) == 1
        neuron.started += 1000
        await until(lambda: fleet.gateway.registry.snapshot.nodes["a"].epoch == 1)
        await until(lambda: len(neuron.called("GET", "/discovery")) == 2)
        assert fleet.gateway.registry.snapshot.nodes["a"].hardware is not None


async def test_a_load_is_followed_by_a_poll_at_once() -> None:
    neuron = FakeNeuron()
    async with running_fleet(Profile("m"), a=neuron, config=polling(3600)) as fleet:
        assert (await fleet.ask()).status == 200
        await until(lambda: len(neuron.called("GET", "/models")) == 2)


async def test_polls_are_counted_by_result() -> None:
    neuron = FakeNeuron()
    async with running_fleet(a=neuron, config=polling(0.02)) as fleet:
        neuron.unreachable = True
        await until(lambda: not fleet.gateway.registry.snapshot.healthy)
        assert await fleet.metric("cortexd_polls_total", node="a", result="ok") >= 1
        assert await fleet.metric("cortexd_polls_total", node="a", result="failed") >= 2
        assert await fleet.metric("cortexd_node_up", node="a") == 0


async def test_a_wrong_token_names_the_token_file() -> None:
    async with running_fleet(a=FakeNeuron(token="right"), tokens={"a": "wrong"}) as fleet:
        trouble = fleet.gateway.registry.snapshot.nodes["a"].trouble
        assert trouble is not None
        assert "token_file" in trouble
        assert "wrong" not in trouble


@pytest.mark.parametrize("body", [b"\xff", b"[]", b'{"uptime_secs":1e400}', b'{"devices":[{}]}'])
async def test_a_health_that_can_not_be_read_only_ages_what_it_would_say(body: bytes) -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.health = {"devices": [{"index": 0, "vram_free_mb": 7}]}
    async with running_fleet(a=neuron, config=polling(0.02)) as fleet:
        registry = fleet.gateway.registry
        neuron.raw["/health"] = body
        await until(lambda: bool(registry.snapshot.nodes["a"].nonsense))
        before = registry.snapshot.nodes["a"]
        await until(lambda: registry.snapshot.nodes["a"].last_contact != before.last_contact)
        after = registry.snapshot.nodes["a"]
        assert after.healthy
        assert after.trouble is None
        assert after.health is before.health
        assert after.health_at == before.health_at < (after.last_contact or 0)
        assert (await fleet.ask()).status == 200


@pytest.mark.parametrize("body", [b"\xff", b"[]", b'{"devices":[{"index":0}]}', b""])
async def test_a_description_that_can_not_be_read_stops_no_serving(body: bytes) -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.raw["/discovery"] = body
    async with running_fleet(Profile("other"), a=neuron, config=polling(0.02)) as fleet:
        assert (await fleet.ask()).status == 200
        assert (await fleet.ask("other")).headers["x-cortex-code"] == "feasible_node_unhealthy"
        assert list(fleet.gateway.registry.snapshot.nodes["a"].nonsense) == [
            "/discovery: no usable answer, so nothing new is placed there"
        ]
        del neuron.raw["/discovery"]  # it is asked for until there is one
        await until(lambda: fleet.gateway.registry.snapshot.nodes["a"].hardware is not None)
        assert not fleet.gateway.registry.snapshot.nodes["a"].nonsense
        assert (await fleet.ask("other")).status == 200
