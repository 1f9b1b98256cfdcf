from __future__ import annotations

import asyncio
import logging

import pytest

from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.routing import Query, Refuse, Serve, decide
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import Model


def registry(*names: str) -> Registry:
    nodes = [Node(name, f"http://{name}") for name in names]
    return Registry(nodes, Catalogue(), Events(), unhealthy_after=1)


def seen(*models: Model) -> Observation:
    return Observation(1.0, 1.1, models=list(models))


def failed(why: str = "refused") -> Observation:
    return Observation(1.0, 1.1, failure=why)


def test_it_is_settled_when_every_node_was_polled_good_or_bad() -> None:
    fleet = registry("a", "b")
    assert not fleet.snapshot.settled
    fleet.observe("a", seen())
    assert not fleet.snapshot.settled
    fleet.observe("b", failed())
    assert fleet.snapshot.settled


def test_no_nodes_is_settled_from_the_start() -> None:
    assert registry().snapshot.settled


def test_a_reader_keeps_the_snapshot_it_took() -> None:
    fleet = registry("a")
    before = fleet.snapshot
    fleet.observe("a", seen(Model("m", "loaded")))
    assert not before.replicas
    assert fleet.snapshot.replicas


def test_a_lease_counts_until_it_is_released_once() -> None:
    fleet = registry("a")
    first, second = fleet.lease("a", "m"), fleet.lease("a", "m")
    assert fleet.ledger.in_flight == {("a", "m"): 2}
    first.release()
    first.release()
    assert fleet.ledger.in_flight == {("a", "m"): 1}
    second.release()
    assert not fleet.ledger.in_flight
    assert ("a", "m") in fleet.ledger.last_access


async def test_a_gate_opens_again_whatever_happens_behind_it() -> None:
    fleet = registry("a")

    def fail_behind_it() -> None:
        with fleet.gate("a", "m"):
            assert fleet.ledger.gates == {"m": {"a"}}
            raise ZeroDivisionError

    waiter = asyncio.ensure_future(fleet.wait_changed())
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        fail_behind_it()
    assert not fleet.ledger.gates
    async with asyncio.timeout(10):
        await waiter


async def test_a_change_wakes_the_waiters_and_a_gauge_does_not() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(Model("m", "loaded")))
    waiter = asyncio.create_task(fleet.wait_changed())
    await asyncio.sleep(0)
    fleet.observe("a", seen(Model("m", "loaded", vram_used_mb=7)))
    await asyncio.sleep(0)
    assert not waiter.done()
    fleet.tell("a", "m", "unloaded")
    await waiter


def test_one_line_a_change_of_a_nodes_state(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fleet = registry("a")
    for observation in (failed(), failed(), failed("no route"), seen(), seen(), failed()):
        fleet.observe("a", observation)
    assert [record.getMessage() for record in caplog.records] == [
        "node a: refused",
        "node a: no route",
        "node a is up, with 0 models",
        "node a is down: refused",
    ]


async def test_a_drained_node_gets_nothing_new_whatever_it_reports() -> None:
    fleet = registry("a", "b")
    for name in ("a", "b"):
        fleet.observe(name, seen(Model("m", "loaded")))
    fleet.drain("a")
    fleet.observe("a", seen(Model("m", "loaded")))
    decision = decide(Query("m"), fleet.snapshot, fleet.ledger, 0.0)
    assert isinstance(decision, Serve)
    assert decision.replica.node == "b"
    fleet.drain("b")
    assert isinstance(decide(Query("m"), fleet.snapshot, fleet.ledger, 0.0), Refuse)
    fleet.undrain("a")
    assert isinstance(decide(Query("m"), fleet.snapshot, fleet.ledger, 0.0), Serve)


async def test_whoever_waits_hears_of_a_drain_and_its_end() -> None:
    fleet = registry("a")
    fleet.observe("a", seen())
    for change in (fleet.drain, fleet.undrain):
        waiter = asyncio.create_task(fleet.wait_changed())
        await asyncio.sleep(0)
        change("a")
        async with asyncio.timeout(10):
            await waiter


def test_a_drain_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fleet = registry("a")
    for change in (fleet.drain, fleet.drain, fleet.undrain, fleet.undrain):
        change("a")
    assert [record.getMessage() for record in caplog.records] == [
        "node a is drained: it gets no new work until it is undrained",
        "node a is back in service",
    ]
