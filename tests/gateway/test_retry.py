"""The policy alone: what may follow a fault, table by table."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from cortexd.control.dispatch import Dispatcher, RouteDecision
from cortexd.control.registry import Lease
from cortexd.fleet.routing import Query
from cortexd.fleet.snapshot import Ledger, Replica
from cortexd.gateway.retry import MAX_RECHECKS, RESEND_WITHIN, Attempts
from cortexd.proxy.answer import UpstreamFault, What


class Routes:
    """A dispatcher that knows these nodes, `load` requests on each, and one that has moved."""

    def __init__(self, *nodes: str, moved: bool = False, **load: int) -> None:
        self.nodes = nodes
        self.moved = moved
        self.load = load
        self.later = 0.0
        self.is_listed = False

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.later

    def other(self, query: Query) -> Replica | None:
        left = [Replica(node, "m", "loaded") for node in self.nodes if node not in query.tried]
        return left[0] if left else None

    def has_better(self, query: Query, route: RouteDecision) -> bool:
        other = self.other(query)
        return other is not None and self.load.get(other.node, 0) < self.load[route.node]

    async def endpoint_moved(self, route: RouteDecision) -> str | None:
        return "http://elsewhere" if self.moved else None

    async def still_listed(self, route: RouteDecision) -> bool:
        return self.is_listed


A = RouteDecision(Replica("a", "m", "loaded"), "http://a", "loaded", Lease(Ledger(), "a", "m"))


def attempts(*nodes: str, retries: int = 2, **options: Any) -> Attempts:
    return Attempts(
        cast(Dispatcher, Routes("a", *nodes, **options)), Query("m", frozenset()), retries
    )


def fault(what: What, *, after: float = 0.0, reused: bool = False) -> UpstreamFault:
    found = UpstreamFault(what, "x", is_reused=reused)
    found.after = after
    return found


@pytest.mark.parametrize(
    ("what", "nodes", "expected"),
    [
        ("refused", ["b"], ({"a"}, False)),
        ("refused", [], None),
        ("unreachable", ["b"], ({"a"}, False)),
        ("unreachable", [], None),
        ("unsent", [], (set(), True)),
        ("declined", ["b"], ({"a"}, False)),
        ("reset", ["b"], ({"a"}, False)),
        ("reset", [], (set(), True)),
        ("invalid", ["b"], None),
        ("timeout", ["b"], None),
    ],
)
async def test_what_follows_a_fault(
    what: What, nodes: list[str], expected: tuple[set[str], bool] | None
) -> None:
    tries = attempts(*nodes)
    assert await tries.has_next(fault(what), A) == (expected is not None)
    if expected is not None:
        assert (tries.query.tried, tries.is_fresh) == expected


async def test_every_attempt_asks_for_the_same_affinity_and_turn() -> None:
    def key() -> int:
        return 7

    tries = Attempts(cast(Dispatcher, Routes("a", "b")), Query("m", frozenset(), key, 3), 2)
    before = tries.query
    assert await tries.has_next(fault("refused"), A)
    for query in (before, tries.query):
        assert (query.model, query.affinity, query.turn) == ("m", key, 3)


async def test_an_endpoint_that_has_moved_is_a_new_attempt_on_the_same_replica() -> None:
    tries = attempts("b", moved=True)
    assert await tries.has_next(fault("refused"), A)
    assert not tries.query.tried


async def test_a_reset_is_tried_again_once_and_soon_only() -> None:
    tries = attempts("b", "c")
    assert await tries.has_next(fault("reset"), A)
    assert not await tries.has_next(fault("reset"), A)
    assert not await attempts("b").has_next(fault("reset", after=RESEND_WITHIN + 0.1), A)


async def test_answer_that_was_taken_back_is_tried_on_one_other_replica_and_soon_only() -> None:
    def taken_back(*, after: float = 0.0) -> UpstreamFault:
        found = fault("invalid", after=after)
        found.is_taken_back = True
        return found

    tries = attempts("b", "c")
    assert await tries.has_next(taken_back(), A)
    assert (tries.query.tried, tries.is_fresh) == ({"a"}, False)
    assert not await tries.has_next(taken_back(), A)
    assert not await tries.has_next(fault("reset"), A)
    assert not await attempts("b").has_next(taken_back(after=RESEND_WITHIN + 0.1), A)
    assert not await attempts().has_next(taken_back(), A)


async def test_a_stale_connection_is_replaced_by_a_fresh_one_to_the_same_replica() -> None:
    tries = attempts("b")
    assert await tries.has_next(fault("reset", reused=True), A)
    assert (tries.query.tried, tries.is_fresh) == (set(), True)


async def test_no_more_attempts_than_retries() -> None:
    tries = attempts(retries=1)
    assert await tries.has_next(fault("unsent"), A)
    assert not await tries.has_next(fault("unsent"), A)


@pytest.mark.parametrize(
    ("status", "nodes", "load", "expected"),
    [
        (503, ["b"], {"a": 1}, True),
        (429, ["b"], {"a": 1}, True),
        (429, ["b"], {"a": 1, "b": 1}, False),
        (503, [], {"a": 1}, False),
        (500, ["b"], {"a": 1}, False),
        (200, ["b"], {"a": 1}, False),
    ],
)
async def test_back_pressure_is_passed_over_for_a_replica_that_is_no_busier(
    status: int, nodes: list[str], load: dict[str, int], expected: bool
) -> None:
    assert attempts(*nodes, **load).declines(A, status) is expected


async def test_the_last_attempt_takes_what_it_gets() -> None:
    assert not attempts("b", retries=0, a=1).declines(A, 503)


MISSING = b'{"error":{"message":"no","code":"model_not_found"}}'


@pytest.mark.parametrize("retries", [0, 2])
async def test_missing_model_is_decided_again_at_most_twice(retries: int) -> None:
    tries = attempts("b", retries=retries)
    assert tries.judge(A, 404, MISSING) == "model_missing"
    for _ in range(MAX_RECHECKS):
        assert await tries.has_next(fault("model_missing"), A)
        assert tries.query.tried == set()
    assert not await tries.has_next(fault("model_missing"), A)


@pytest.mark.parametrize(("nodes", "expected"), [(["b"], True), ([], False)])
async def test_node_that_still_lists_the_missing_model_is_passed_over(
    nodes: list[str], expected: bool
) -> None:
    routes = Routes("a", *nodes)
    routes.is_listed = True
    tries = Attempts(cast(Dispatcher, routes), Query("m", frozenset()), 0)
    assert await tries.has_next(fault("model_missing"), A) is expected
    assert tries.query.tried == {"a"}


async def test_other_error_answers_are_passed_to_the_client() -> None:
    assert attempts("b").judge(A, 404, b'{"detail":"Not Found"}') is None


COLD = msgspec.structs.replace(A, route="cold")


@pytest.mark.parametrize("status", [429, 503])
async def test_who_has_waited_for_a_model_goes_back_to_the_line_as_often_as_need_be(
    status: int,
) -> None:
    tries = Attempts(cast(Dispatcher, Routes("a")), Query("m", frozenset()), 0, patience_for=60)
    arrived = asyncio.get_running_loop().time()
    assert tries.since is None
    for _ in range(5):
        assert tries.declines(COLD, status)
        assert await tries.has_next(fault("declined"), COLD)
    assert tries.since is not None
    assert tries.since <= arrived
    assert tries.query.tried == set()


async def test_what_was_declined_for_its_place_goes_back_though_the_bound_has_passed() -> None:
    """The line then says that it still loads; no other node is tried in vain."""
    routes = Routes("a")
    tries = Attempts(cast(Dispatcher, routes), Query("m", frozenset()), 2, patience_for=10)
    assert tries.declines(COLD, 503)
    routes.later = 11
    assert await tries.has_next(fault("declined"), COLD)
    assert tries.since is not None
    assert tries.query.tried == set()


async def test_nobody_waits_for_longer_than_the_bound() -> None:
    tries = Attempts(cast(Dispatcher, Routes("a")), Query("m", frozenset()), 0, patience_for=0)
    assert not tries.declines(COLD, 503)
