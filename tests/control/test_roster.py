"""Nodes that come and go, with everything that they bring and leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from cortexd.config.changes import changes
from cortexd.config.current import Settings
from cortexd.config.gateway import Config, Eviction, Neuron, Polling, Routing
from cortexd.config.units import AutoDuration, Duration
from cortexd.control import roster
from cortexd.control.coldload import LoadTable
from cortexd.control.events import Events
from cortexd.control.poller import Poller
from cortexd.control.registry import Registry
from cortexd.control.roster import Roster, nodes, policy
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.nodes.client import NeuronClient
from cortexd.wire.neuron import Model
from tests.waiting import until


class Notes:
    """Stands for the poller and the load table: what they were told, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, names: list[str]) -> None:
        self.said += [f"poll {name}" for name in names]

    def end(self, name: str) -> None:
        self.said.append(f"poll {name} no more")

    def abandon(self, name: str) -> None:
        self.said.append(f"abandon {name}")


class Office:
    """A roster with nothing but a registry behind it."""

    def __init__(self) -> None:
        self.settings = Settings(Config())
        self.registry = Registry([], Catalogue(), Events(), unhealthy_after=1)
        self.clients: dict[str, NeuronClient] = {}
        self.notes = Notes()
        notes: Any = self.notes
        self.dropped: list[str] = []
        self.roster = Roster(
            self.registry,
            self.clients,
            cast(Poller, notes),
            cast(LoadTable, notes),
            lambda neuron, token: cast(NeuronClient, (neuron.endpoint, token)),
            self.dropped.append,
        )

    def follow(self, *neurons: Neuron, **tokens: str) -> None:
        after = Settings(Config(neurons=neurons), tokens)
        self.roster.follow(after, changes(self.settings, after), ["d"])
        self.settings = after

    def is_up(self, name: str) -> None:
        self.registry.observe(name, Observation(1.0, 1.1, models=[Model("m", "loaded")]))


@pytest.fixture
async def office(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(roster, "LOOK", 0.01)
    office = Office()
    yield office
    await office.roster.close()


A, B = Neuron("a", "http://a"), Neuron("b", "http://b")


async def test_a_node_that_is_added_is_connected_and_polled(office: Office) -> None:
    office.follow(A, B, b="secret")
    assert office.clients == {"a": ("http://a", None), "b": ("http://b", "secret")}
    assert office.notes.said[-2:] == ["poll a", "poll b"]


async def test_a_node_that_an_operator_has_drained_comes_drained(office: Office) -> None:
    office.follow(Neuron("d", "http://d"))
    assert office.registry.snapshot.nodes["d"].draining


async def test_a_node_goes_when_nothing_runs_there_and_is_polled_until_then(
    office: Office,
) -> None:
    office.follow(A)
    office.is_up("a")
    lease = office.registry.lease("a", "m")
    office.notes.said.clear()
    office.follow()
    for _ in range(5):
        await asyncio.sleep(0.02)
    assert (office.notes.said, office.dropped, list(office.clients)) == ([], [], ["a"])
    lease.release()
    await until(lambda: office.dropped == ["a"])
    assert (office.notes.said, office.clients) == (["poll a no more"], {})
    assert not office.registry.snapshot.nodes


async def test_one_that_has_nothing_to_do_stays_for_what_was_begun_in_this_turn(
    office: Office,
) -> None:
    office.follow(A)
    office.follow()
    assert "a" in office.registry.snapshot.nodes
    await until(lambda: office.dropped == ["a"])


async def test_one_that_comes_back_is_not_dropped(office: Office) -> None:
    office.follow(A)
    office.follow()
    office.follow(A)
    await until(lambda: not len(office.roster._tasks))
    assert office.dropped == []
    assert office.registry.snapshot.nodes["a"].is_available is False  # not asked yet
    assert not office.registry.snapshot.nodes["a"].leaving


async def test_another_endpoint_has_loads_there_abandoned_first(office: Office) -> None:
    office.follow(A)
    office.notes.said.clear()
    office.follow(Neuron("a", "http://elsewhere"))
    assert office.notes.said == ["abandon a", "poll a"]
    assert office.clients == {"a": ("http://elsewhere", None)}


async def test_what_is_only_weighed_otherwise_is_left_alone(office: Office) -> None:
    office.follow(A)
    office.notes.said.clear()
    office.follow(Neuron("a", "http://a", weight=2.0))
    assert office.notes.said == []
    assert office.registry.snapshot.nodes["a"].weight == 2.0


def test_a_configuration_becomes_nodes_and_a_policy() -> None:
    config = Config(
        neurons=(Neuron("a", "http://a", weight=2.0, reserve_mb=3),),
        polling=Polling(Duration(4)),
        routing=Routing("none"),
        eviction=Eviction(enabled=False, min_residency=AutoDuration(7)),
    )
    [node] = nodes(config, ["a"])
    assert (node.endpoint, node.weight) == ("http://a", 2.0)
    assert (node.reserve_mb, node.draining) == (3, True)
    made = policy(config)
    assert (made.affinity, made.stale_after, made.evicts) == (False, 12.0, False)
    assert made.min_residency == 7
    assert policy(Config()).min_residency is None
