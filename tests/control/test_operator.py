"""What an operator asks for, where it meets what is under way already."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading, Polling
from cortexd.config.units import Duration
from cortexd.control.operator import Operator
from cortexd.errors import Refusal
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Fleet, running_fleet, until

FAST = Polling(interval=Duration(0.05), timeout=Duration(2), unhealthy_after=2)


def operator(fleet: Fleet) -> Operator:
    return fleet.gateway._operator


async def test_a_second_copy_waits_for_the_load_of_the_first() -> None:
    first, second = FakeNeuron(), FakeNeuron()
    first.release.clear()
    async with running_fleet(Profile("m"), a=first, b=second) as fleet:
        anywhere = asyncio.create_task(operator(fleet).load("m"))
        await until(lambda: len(fleet.loads("a")) == 1)
        there = asyncio.create_task(operator(fleet).load("m", "b"))
        await asyncio.sleep(0)
        assert fleet.loads("b") == []
        first.release.set()
        assert (await anywhere).node == "a"
        assert (await there).node == "b"


@pytest.mark.parametrize("node", [None, "a"])
@pytest.mark.parametrize("status", ["loading", "reloading"])
async def test_what_somebody_else_brings_up_is_waited_for(status: str, node: str | None) -> None:
    neuron = FakeNeuron({"m": status})
    async with running_fleet(Profile("m"), config=Config(polling=FAST), a=neuron) as fleet:
        waiting = asyncio.create_task(operator(fleet).load("m", node))
        await asyncio.sleep(0)
        neuron.models["m"] = "loaded"
        assert (await waiting).node == "a"
        assert fleet.loads("a") == []


async def test_a_load_that_takes_too_long_goes_on_and_can_be_cancelled() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    config = Config(polling=FAST, loading=Loading(timeout=Duration(0.2)))
    async with running_fleet(Profile("m"), config=config, a=neuron) as fleet:
        with pytest.raises(Refusal, match="still loading") as refused:
            await operator(fleet).load("m", "a")
        assert refused.value.kind.code == "model_loading"
        table = fleet.gateway.table
        await until(lambda: table.entry("m") is None)  # past its bound
        assert table.ours("m") is not None
        with pytest.raises(Refusal, match="still loading"):
            await operator(fleet).load("m", "a")
        assert len(fleet.loads("a")) == 1
        assert await operator(fleet).unload("m") == ["a"]
        await until(lambda: table.ours("m") is None)
        assert not fleet.gateway.registry.ledger.loading


async def test_a_node_that_is_down_is_not_asked() -> None:
    neuron = FakeNeuron()
    async with running_fleet(Profile("m"), config=Config(polling=FAST), a=neuron) as fleet:
        neuron.unreachable = True
        await until(lambda: not fleet.gateway.registry.snapshot.healthy)
        with pytest.raises(Refusal, match="a is unhealthy") as refused:
            await operator(fleet).load("m", "a")
        assert refused.value.kind.code == "feasible_node_unhealthy"
        assert fleet.loads("a") == []


async def test_one_that_is_resident_but_broken_is_to_be_unloaded_first() -> None:
    broken = {"id": "m", "status": "loaded", "servable": {"ok": False, "reason": "wedged"}}
    async with running_fleet(Profile("m"), a=FakeNeuron({"m": broken})) as fleet:
        for node in (None, "a"):
            with pytest.raises(Refusal) as refused:
                await operator(fleet).load("m", node)
            assert refused.value.kind.code == "model_unservable"
        assert await operator(fleet).unload("m") == ["a"]


async def test_no_more_than_two_nodes_are_tried() -> None:
    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "no"}, status=500)

    neurons = {name: FakeNeuron() for name in "abc"}
    for neuron in neurons.values():
        neuron.load_answer = fail
    async with running_fleet(Profile("m"), **neurons) as fleet:
        with pytest.raises(Refusal, match=r"a says .*; b says "):
            await operator(fleet).load("m")
        assert [len(fleet.loads(name)) for name in "abc"] == [1, 1, 0]
