from __future__ import annotations

import asyncio
import logging

import pytest

from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.sanity import STANDS_FOR
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import Discovery, Health, Model


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


def test_nonsense_is_one_line_when_it_comes_up_and_one_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    fleet = registry("a")

    def poll(at: float, *models: Model, uptime: float | None = None) -> None:
        health = Health(uptime_secs=100 + at if uptime is None else uptime)
        fleet.observe("a", Observation(at, at, models=list(models), health=health))

    x, y = Model("x", "loaded"), Model("y", "loaded")
    poll(0, x)
    for at in range(2, 20, 2):
        poll(at, x, x, y, y) if at % 4 else poll(at, y, x)  # now and then, in any order
    poll(20, x, x, uptime=-1)
    poll(22, x)
    poll(22 + STANDS_FOR, x)
    poll(24 + STANDS_FOR, x)
    assert [record.getMessage() for record in caplog.records] == [
        "node a is up, with 1 models",
        "node a reports nonsense, which is ignored; look at its neuron: "
        "/models: the same id twice, the first one counts ('x', 'y')",
        "node a reports nonsense, which is ignored; look at its neuron: "
        "/health: uptime_secs can't be true",
        "node a reports no more nonsense",
    ]


def test_what_a_node_reports_and_is_not_believed_stands_in_the_picture() -> None:
    fleet = registry("a")
    after = fleet.observe("a", seen(Model("m", "loaded", vram_used_mb=-1), Model("", "loaded")))
    assert after is fleet.snapshot.nodes["a"]
    assert after.models == {"m": Model("m", "loaded")}
    assert [(it, known.where) for it, known in after.nonsense.items()] == [
        ("/models: an id that is empty, over 512 characters or not printable", "''"),
        ("/models: vram_used_mb can't be true", "'m'"),
    ]
    assert fleet.observe("a", failed()).nonsense == after.nonsense


def test_a_node_that_becomes_another_host_is_told(caplog: pytest.LogCaptureFixture) -> None:
    fleet = registry("a")

    def poll(at: float, uptime: float, hostname: str | None) -> None:
        described = Discovery([], hostname=hostname)
        health = Health(uptime_secs=uptime)
        fleet.observe("a", Observation(at, at, models=[], health=health, discovery=described))

    poll(0, 1000, "beast")
    poll(20, 0, "beast")
    poll(40, 0, None)
    poll(60, 0, "toaster")
    caplog.clear()
    poll(80, 0, "beast\x1b[2J")
    assert [record.getMessage() for record in caplog.records] == [
        "node a has restarted",
        "node a was the host toaster and is beast?[2J now; if that is not meant, check its "
        "endpoint",
    ]
