"""Memory that is promised, and what models were seen to take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cortexd.config.catalogue import Profile
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.control.reservations import Reservations
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.memory import footprint, free
from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import DeviceHealth, DeviceInfo, Discovery, Health, Model

M, N = Profile("m", vram_mb=10000), Profile("n", vram_mb=8000)
TOTAL = 24000


class Host:
    """A registry of one node `a`, and what that node says."""

    def __init__(self) -> None:
        self.time = asyncio.get_running_loop().time()
        self.changes = 0
        self.registry = Registry(
            [Node("a", "http://a"), Node("b", "http://b")],
            Catalogue.of((M, N), {}),
            Events(),
            unhealthy_after=1,
            now=lambda: self.time,
        )
        self.reservations = Reservations(self.registry, self._change)

    def _change(self) -> None:
        self.changes += 1

    def says(self, free_mb: float, *models: Model, node: str = "a", age: float = 0.0) -> None:
        """A poll of it comes back that was sent so many seconds ago."""
        health = Health(self.time, devices=[DeviceHealth(0, vram_free_mb=free_mb)])
        hardware = Discovery([DeviceInfo(0, TOTAL)])
        seen = Observation(self.time - age, self.time, list(models), health, hardware)
        self.registry.observe(node, seen)

    @property
    def free(self) -> float:
        snapshot, ledger = self.registry.snapshot, self.registry.ledger
        return free(snapshot.nodes["a"], snapshot, ledger)[0]


def model(name: str, status: str = "loaded", **fields: Any) -> Model:
    return Model(name, status, devices=[0], **fields)


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr("cortexd.control.reservations.now", lambda: made.time)
    made.says(TOTAL)
    return made


async def test_a_load_under_way_is_not_counted_twice(host: Host) -> None:
    host.reservations.begin("a", "m", {0: 10000})
    assert host.free == TOTAL - 10000
    host.says(TOTAL - 6000)  # it has taken a part
    assert host.free == TOTAL - 10000
    host.says(TOTAL - 12000)  # more than it was promised
    assert host.free == TOTAL - 12000


async def test_a_promise_holds_until_a_report_that_was_asked_for_after_the_end(host: Host) -> None:
    host.reservations.begin("a", "m", {0: 10000})
    host.time += 10
    host.reservations.end("a", "m")
    host.says(TOTAL, age=1)
    assert host.free == TOTAL - 10000
    host.time += 1
    host.says(TOTAL - 9000, model("m"))
    assert host.free == TOTAL - 9000
    assert not host.registry.ledger.promises


async def test_what_a_failed_load_was_promised_is_there_for_the_others(host: Host) -> None:
    host.reservations.begin("a", "m", {0: 10000})
    host.reservations.begin("a", "n", {0: 8000})
    assert host.free == TOTAL - 18000
    host.reservations.end("a", "m", failed=True)
    host.time += 1
    host.says(TOTAL - 1000)
    assert host.free == TOTAL - 8000


async def test_room_that_is_made_for_one_is_for_nobody_else(host: Host) -> None:
    host.reservations.claim("a", "m", {0: 10000})
    host.says(4000)
    assert host.free == 0
    host.says(TOTAL)
    assert host.free == TOTAL - 10000
    host.reservations.end("a", "m")
    assert host.free == TOTAL


async def test_what_leaves_beside_a_load_is_free_as_soon_as_it_is_reported(host: Host) -> None:
    host.says(TOTAL - 8000, model("n", vram_used_mb=8000))
    host.registry.ledger.loading["m"] = "a"
    host.reservations.begin("a", "m", {0: 10000})
    with host.reservations.unloading("a", "n") as has_gone:
        assert host.free == TOTAL - 18000
        host.says(TOTAL)
        assert host.free == TOTAL - 18000, "the load was promised what was there then"
        has_gone()
    assert host.free == TOTAL - 10000


async def test_what_a_node_wakes_by_itself_is_reserved_until_it_is_there(host: Host) -> None:
    host.says(TOTAL, model("m", "unloaded"))
    host.registry.tell("a", "m", "reloading")
    host.reservations.wake("a", "m")
    assert host.free == TOTAL - 10000
    host.says(TOTAL, model("m", "reloading"))
    assert host.free == TOTAL - 10000
    for _ in range(2):
        host.time += 1
        host.says(TOTAL - 11000, model("m"))
    assert host.free == TOTAL - 11000
    assert not host.registry.ledger.promises


async def test_what_is_in_no_catalogue_wakes_without_a_promise(host: Host) -> None:
    host.says(TOTAL, model("stray", "unloaded"))
    host.reservations.wake("a", "stray")
    assert not host.registry.ledger.promises


async def test_a_footprint_is_what_was_seen_and_elsewhere_the_most_that_was(host: Host) -> None:
    ledger, nodes = host.registry.ledger, host.registry.snapshot.nodes
    assert footprint(M, nodes["a"], ledger) == 10000
    host.says(TOTAL, model("m", vram_used_mb=12000))
    assert footprint(M, nodes["a"], ledger) == 12000
    assert footprint(M, nodes["b"], ledger) == 12000
    host.says(TOTAL, model("m", vram_used_mb=11000), node="b")
    assert footprint(M, nodes["b"], ledger) == 11000
    assert footprint(N, nodes["b"], ledger) == 8000


@pytest.mark.parametrize(
    "info",
    [
        model("m", vram_used_mb=0),
        model("m"),
        model("m", "loading", vram_used_mb=500),
        model("m", vram_used_mb=9000, harness="other"),
        model("stray", vram_used_mb=9000),
    ],
    ids=["nothing", "not said", "not loaded yet", "another engine", "not in the catalogue"],
)
async def test_what_is_no_measurement(host: Host, info: Model) -> None:
    host.says(TOTAL, info)
    assert not host.registry.ledger.footprints
    assert not host.changes


async def test_a_footprint_is_told_on_when_it_has_truly_changed(host: Host) -> None:
    for used in (9000, 9000, 9050, 9500):
        host.says(TOTAL, model("m", vram_used_mb=used))
    assert host.changes == 2
