from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from cortexd.config.catalogue import Profile
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.fleet import sanity
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.routing import Query, Refuse, Serve, Wait, decide
from cortexd.fleet.snapshot import (
    DEFAULT_POLICY,
    Failure,
    FootprintKey,
    Ledger,
    Node,
    Policy,
    Promise,
)
from cortexd.wire.neuron import Discovery, Health, Model, ModelLoad
from tests.waiting import GUARD


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
    async with asyncio.timeout(GUARD):
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
    fleet.lease("a", "m")
    fleet.observe("a", Observation(2.0, 2.1, failure="cut off", health=Health()))
    assert fleet.ledger.counted == {KEY: 1}, "of a failed poll nothing is taken in"
    fleet.observe("a", seen(M, health=Health()))
    assert fleet.ledger.counted == {KEY: 2}


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
        async with asyncio.timeout(GUARD):
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


def reconfigured(
    fleet: Registry,
    *nodes: Node,
    fresh: tuple[str, ...] = (),
    catalogue: Catalogue | None = None,
    policy: Policy = DEFAULT_POLICY,
) -> None:
    fleet.reconfigure(
        nodes, catalogue or Catalogue(), fresh=fresh, unhealthy_after=1, policy=policy
    )


async def test_another_configuration_is_one_change_and_keeps_what_is_known() -> None:
    fleet = registry("a", "b")
    fleet.observe("a", seen(Model("m", "loaded")))
    fleet.observe("b", seen())
    fleet.drain("b")
    policy = Policy(affinity=False)
    catalogue = Catalogue.of((Profile("x"),), {"alias": "m"})
    changed = asyncio.ensure_future(fleet.wait_changed())
    await asyncio.sleep(0)
    a, b = Node("a", "http://a", weight=3.0, reserve_mb=7), Node("b", "http://b")
    reconfigured(fleet, a, b, catalogue=catalogue, policy=policy)
    await changed
    after = fleet.snapshot
    assert (after.catalogue, after.policy, after.settled) == (catalogue, policy, True)
    assert (after.nodes["a"].weight, after.nodes["a"].reserve_mb) == (3.0, 7)
    assert after.nodes["a"].healthy
    assert after.nodes["b"].draining
    assert isinstance(decide(Query("m"), after, fleet.ledger, 0.0), Serve)


async def test_what_a_new_node_may_have_is_waited_for() -> None:
    fleet = registry("a")
    fleet.observe("a", seen())
    reconfigured(fleet, Node("a", "http://a"), Node("b", "http://b"), fresh=("b",))
    assert isinstance(decide(Query("m"), fleet.snapshot, fleet.ledger, 0.0), Wait)
    fleet.observe("b", failed())
    assert isinstance(decide(Query("m"), fleet.snapshot, fleet.ledger, 0.0), Refuse)


async def test_a_node_that_leaves_keeps_its_claims_and_gets_no_new_ones() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(Model("m", "loaded")))
    lease = fleet.lease("a", "m")
    reconfigured(fleet)
    assert fleet.snapshot.nodes["a"].leaving
    assert isinstance(decide(Query("m"), fleet.snapshot, fleet.ledger, 0.0), Refuse)
    fleet.undrain("a")
    assert not fleet.snapshot.nodes["a"].is_available
    assert not fleet.is_idle("a")
    lease.release()
    assert fleet.is_idle("a")
    fleet.drop("a")
    assert (fleet.snapshot.nodes, fleet.snapshot.replicas, fleet.snapshot.healthy) == ({}, {}, 0)


async def test_a_node_is_not_idle_while_it_loads_unloads_or_is_stood_in_line_for() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(Model("m", "loaded")))
    with fleet.gate("a", "m"):
        assert not fleet.is_idle("a")
    fleet.ledger.loading["m"] = "a"
    assert not fleet.is_idle("a")
    del fleet.ledger.loading["m"]
    fleet.ledger.turns["a", "m"] = lambda: None
    assert not fleet.is_idle("a")
    del fleet.ledger.turns["a", "m"]
    assert fleet.is_idle("a")


async def test_nothing_is_kept_of_a_node_that_is_gone() -> None:
    fleet = registry("a", "b")
    fleet.observe("a", seen(Model("m", "loaded")))
    fleet.observe("b", seen(Model("m", "loaded")))
    ledger = fleet.ledger
    for name in ("a", "b"):
        fleet.lease(name, "m").release()
        fleet.note_success(name, "m")
        fleet.note_fault(name, "m", suspect=True)
        ledger.failures[name, "m"] = Failure("no", 1.0)
        ledger.load_seconds[name, "m"] = 1.0
        ledger.spared[name, "m"] = 1.0
        ledger.promises[name, "m"] = Promise({0: 1.0})
        ledger.footprints[FootprintKey("m", "llamacpp", None, 1, name)] = 1.0
    polled = asyncio.ensure_future(fleet.wait_polled("a", 1000.0))
    await asyncio.sleep(0)
    reconfigured(fleet, Node("b", "http://b"))
    fleet.drop("a")
    await polled  # it will never come
    for book in vars_of(ledger):
        assert [key for key in book if key == "a" or key[0] == "a"] == []
    assert [key.node for key in ledger.footprints] == ["b"]
    assert ledger.failures


def vars_of(ledger: Ledger) -> list[dict[Any, Any]]:
    books = [getattr(ledger, name) for name in ledger.__dataclass_fields__]
    return [book for book in books if book is not ledger.footprints]


async def test_another_node_of_the_same_name_starts_from_nothing() -> None:
    fleet = registry("a")
    fleet.observe("a", seen(Model("m", "loaded")))
    lease = fleet.lease("a", "m")
    fleet.ledger.failures["a", "x"] = Failure("no", 1.0)
    reconfigured(fleet, Node("a", "http://elsewhere"), fresh=("a",))
    after = fleet.snapshot.nodes["a"]
    assert (after.healthy, after.polled, after.epoch) == (False, False, 1)
    assert (after.endpoint, dict(after.models)) == ("http://elsewhere", {})
    assert (fleet.snapshot.healthy, fleet.snapshot.settled) == (0, False)
    assert not fleet.ledger.failures
    fleet.observe("a", seen(Model("m", "loaded")))
    lease.release()
    assert not fleet.ledger.in_flight


async def test_what_was_learnt_of_a_model_ends_with_its_profile() -> None:
    fleet = registry("a")
    old = Catalogue.of((Profile("m"), Profile("n"), Profile("o")), {})
    reconfigured(fleet, Node("a", "http://a"), catalogue=old)
    keys = {model: FootprintKey(model, "llamacpp", None, 1, "a") for model in "mno"}
    fleet.ledger.footprints.update(dict.fromkeys(keys.values(), 1.0))
    for model in "mnox":
        fleet.ledger.failures["a", model] = Failure("no", 1.0)
    new = Catalogue.of((Profile("m", vram_mb=9), Profile("n", capabilities=("chat",))), {})
    reconfigured(fleet, Node("a", "http://a"), catalogue=new)
    assert set(fleet.ledger.footprints) == {keys["n"]}
    assert set(fleet.ledger.failures) == {("a", "x")}  # which the catalogue never listed
