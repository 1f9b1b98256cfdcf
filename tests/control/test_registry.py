from __future__ import annotations

import asyncio
import logging

import pytest

from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.fleet import sanity
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import Discovery, Health, Model, ModelLoad


class Clock:
    """Monotonic seconds that a test turns forward."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def registry(*names: str, now: Clock | None = None) -> Registry:
    nodes = [Node(name, f"http://{name}") for name in names]
    return Registry(nodes, Catalogue(), Events(), unhealthy_after=1, now=now or Clock())


def seen(*models: Model, health: Health | None = None) -> Observation:
    return Observation(1.0, 1.1, models=list(models), health=health)


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
    poll(22 + sanity.STANDS_FOR, x)
    poll(24 + sanity.STANDS_FOR, x)
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


M = Model("m", "loaded")
KEY = ("a", "m")


def test_a_report_says_which_of_our_requests_it_can_have_counted() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(M))
    before = fleet.lease("a", "m")
    fleet.observe("a", seen(M))
    assert not fleet.ledger.counted, "there was no report"
    fleet.observe("a", seen(M, health=Health(models=[ModelLoad("m", in_flight=1)])))
    assert fleet.ledger.counted == {KEY: 1}
    fleet.lease("a", "m")
    before.release()
    assert fleet.ledger.counted == {KEY: 1}, "what came and went since is not in it"
    fleet.observe("a", seen(M, health=Health()))
    assert fleet.ledger.counted == {KEY: 1}


def test_a_model_at_rest_is_counted_as_nothing() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(M))
    lease = fleet.lease("a", "m")
    fleet.observe("a", seen(M, health=Health()))
    lease.release()
    fleet.observe("a", seen(M, health=Health()))
    assert not fleet.ledger.counted


def test_a_first_answer_is_remembered_until_the_model_is_not_loaded_any_more() -> None:
    clock = Clock()
    fleet = registry("a", now=clock)
    fleet.observe("a", seen(M))
    fleet.note_success("a", "m")
    clock.now += 5
    fleet.note_success("a", "m")
    assert fleet.ledger.served == {KEY: 100.0}
    fleet.observe("a", seen(M))
    assert fleet.ledger.served
    fleet.observe("a", seen(Model("m", "unloaded")))
    assert not fleet.ledger.served
    fleet.note_success("a", "m")
    assert not fleet.ledger.served, "it is not resident"


async def test_what_is_told_or_forgotten_ends_a_stay_as_well() -> None:
    fleet = registry("a")
    for end in (lambda: fleet.tell("a", "m", "unloaded"), lambda: fleet.forget("a", "m")):
        fleet.observe("a", seen(M))
        fleet.tell("a", "m", "loaded")
        fleet.note_success("a", "m")
        assert fleet.ledger.served
        end()
        assert not fleet.ledger.served


def test_a_restart_ends_every_stay() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(M, health=Health(uptime_secs=100)))
    fleet.note_success("a", "m")
    fleet.observe("a", seen(M, health=Health(uptime_secs=1)))
    assert not fleet.ledger.served


def test_a_fault_makes_a_replica_suspect_until_it_answers_a_request() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(M))
    assert fleet.note_fault("a", "m", suspect=True), "that is news"
    assert not fleet.note_fault("a", "m", suspect=True), "that is not"
    assert fleet.ledger.faults[KEY].suspect_until == 110.0
    fleet.observe("a", seen(M))
    assert KEY in fleet.ledger.faults, "management may work while inference does not"
    fleet.note_success("a", "m")
    assert not fleet.ledger.faults


def test_a_failure_that_says_nothing_of_the_connection_raises_no_suspicion() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(M))
    assert not fleet.note_fault("a", "m", suspect=False)
    assert fleet.ledger.faults[KEY].suspect_until <= 100.0
    assert fleet.ledger.faults[KEY].penalty > 0


def test_old_faults_are_forgotten() -> None:
    clock = Clock()
    fleet = registry("a", now=clock)
    fleet.observe("a", seen(M))
    fleet.note_fault("a", "m", suspect=True)
    clock.now += 60
    fleet.observe("a", seen(M))
    assert not fleet.ledger.faults


def test_nothing_is_remembered_of_a_model_that_is_gone() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(M))
    lease, last = fleet.lease("a", "m"), fleet.lease("a", "m")
    fleet.observe("a", seen(M, health=Health()))
    fleet.note_success("a", "m")
    fleet.note_fault("a", "m", suspect=True)
    lease.release()
    fleet.observe("a", seen(health=Health()))
    last.release()
    fleet.note_fault("a", "m", suspect=True)
    fleet.note_success("a", "m")
    ledger = fleet.ledger
    for kept in (ledger.in_flight, ledger.counted, ledger.faults, ledger.served):
        assert not kept
    assert not ledger.last_access


def test_no_change_is_hidden_from_those_who_listen_though_the_log_is_spared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = Events()
    fleet = Registry([Node("a", "http://a")], Catalogue(), events, unhealthy_after=1)
    with events.listening(lambda: None) as queue:
        for turn in range(40):
            moment = turn / 2
            models = None if turn % 2 else [M]
            fleet.observe("a", Observation(moment, moment, models=models, failure="no"))
            assert fleet.snapshot.healthy == 1 - turn % 2
        assert queue.qsize() == 40
    lines = [record for record in caplog.records if "up and down" in record.getMessage()]
    assert len(lines) == 1
