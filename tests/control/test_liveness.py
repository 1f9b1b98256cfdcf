from __future__ import annotations

import pytest

from cortexd.control.events import Events
from cortexd.control.liveness import STALE_WITHIN, Liveness
from cortexd.control.registry import Registry
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Node
from cortexd.proxy.answer import UpstreamFault, What
from cortexd.wire.neuron import Model

KEY = ("a", "m")


class Watched:
    """One replica, and what is known of it after requests to it have ended."""

    def __init__(self) -> None:
        self.nudged: list[str] = []
        self.now = 100.0
        self.registry = Registry(
            [Node("a", "http://a")], Catalogue(), Events(), unhealthy_after=3, now=lambda: self.now
        )
        self.registry.observe("a", Observation(99.0, 99.1, models=[Model("m", "loaded")]))
        replica = self.registry.replica("a", "m")
        assert replica is not None
        self.replica = replica
        self.liveness = Liveness(self.registry, self.nudged.append)

    def failed(self, what: What, *, status: int = 0, after: float = 0, reused: bool = False) -> str:
        fault = UpstreamFault(what, "x", is_reused=reused)
        fault.status, fault.after = status, after
        self.liveness.failed(self.replica, fault)
        return self.standing

    def answered(self, status: int, *, is_whole: bool = True) -> str:
        self.liveness.answered(self.replica, status, is_whole=is_whole)
        return self.standing

    @property
    def standing(self) -> str:
        fault = self.registry.ledger.faults.get(KEY)
        if fault is None:
            return "good"
        return "suspect" if fault.suspect_until > self.now else "penalised"


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("refused", "suspect"),
        ("unreachable", "suspect"),
        ("reset", "suspect"),
        ("invalid", "penalised"),
        ("timeout", "penalised"),
        ("unsent", "good"),
        ("declined", "good"),
    ],
)
async def test_what_a_fault_says_of_a_replica(what: What, expected: str) -> None:
    watched = Watched()
    assert watched.failed(what) == expected
    assert watched.nudged == (["a"] if expected == "suspect" else [])


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, "good") for status in (200, 302, 400, 404, 429, 503)),
        *((status, "penalised") for status in (500, 502, 504, 507)),
    ],
)
async def test_what_an_answer_says_of_a_replica(status: int, expected: str) -> None:
    assert Watched().answered(status) == expected
    assert Watched().failed("answered", status=status) == expected


async def test_an_answer_that_breaks_off_makes_it_suspect() -> None:
    watched = Watched()
    assert watched.answered(200, is_whole=False) == "suspect"
    assert watched.nudged == ["a"]


async def test_a_used_connection_that_ends_soon_may_just_have_been_idle_for_too_long() -> None:
    watched = Watched()
    assert watched.failed("reset", reused=True, after=STALE_WITHIN / 2) == "good"
    assert watched.failed("reset", reused=True, after=STALE_WITHIN + 1) == "suspect"


@pytest.mark.parametrize("status", [400, 404, 429, 503])
async def test_what_is_no_fault_is_no_success_either(status: int) -> None:
    watched = Watched()
    watched.failed("refused")
    assert watched.answered(status) == "suspect"
    assert not watched.registry.ledger.served


async def test_a_success_clears_both() -> None:
    watched = Watched()
    watched.failed("refused")
    watched.answered(500)
    assert watched.answered(200) == "good"
    assert watched.registry.ledger.served == {KEY: 100.0}


async def test_the_node_is_polled_once_for_as_long_as_it_is_suspect() -> None:
    watched = Watched()
    for _ in range(20):
        watched.failed("refused")
    assert watched.nudged == ["a"]
    watched.now += 11
    watched.failed("refused")
    assert watched.nudged == ["a", "a"]
