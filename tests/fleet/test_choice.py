from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.fleet.choice import (
    Affinity,
    choose,
    hashed,
    is_over,
    is_suspect,
    no_affinity,
    penalty,
    score,
    worsened,
)
from cortexd.fleet.snapshot import Fault, Ledger, Node, Policy, Replica, Snapshot
from tests.fleet.fleet import fleet, node

NOW = 100.0


def there(name: str, status: str = "loaded", *, busy: int = 0, weight: float = 1.0) -> Node:
    """A node with the model `m`, which reported just now."""
    return node(name, {"m": status}, busy={"m": busy}, health_at=NOW, weight=weight)


def keyed(number: int) -> Affinity:
    key = hashed(b"conversation", b"%d" % number)
    return lambda: key


def chosen(
    snapshot: Snapshot,
    ledger: Ledger | None = None,
    affinity: Affinity = no_affinity,
    turn: int = 0,
    now: float = NOW,
) -> str:
    replicas = list(snapshot.replicas["m"])
    return choose(replicas, snapshot, ledger or Ledger(), now, affinity, turn).node


def who(snapshot: Snapshot, ledger: Ledger | None = None, now: float = NOW) -> set[str]:
    """All that may be chosen, by turn or by key."""
    by_turn = {chosen(snapshot, ledger, turn=turn, now=now) for turn in range(30)}
    by_key = {chosen(snapshot, ledger, keyed(number), now=now) for number in range(60)}
    assert by_turn == by_key
    return by_turn


def failed(*, suspect: bool, at: float = NOW) -> Fault:
    return worsened(None, at, suspect=suspect)


A, B = ("a", "m"), ("b", "m")

# Each row: the fleet, what we know, and who may serve.
CHOICES = [
    pytest.param(fleet(there("a")), Ledger(), {"a"}, id="one is chosen as it is"),
    pytest.param(fleet(there("a"), there("b")), Ledger(), {"a", "b"}, id="equals share"),
    pytest.param(
        fleet(there("a"), there("b")), Ledger({A: 1}), {"a", "b"}, id="one request is no difference"
    ),
    pytest.param(fleet(there("a"), there("b")), Ledger({A: 2}), {"b"}, id="two are"),
    pytest.param(
        fleet(there("a"), there("b")), Ledger({A: 25, B: 20}), {"a", "b"}, id="a quarter is none"
    ),
    pytest.param(fleet(there("a"), there("b")), Ledger({A: 26, B: 20}), {"b"}, id="more is"),
    pytest.param(
        fleet(there("a", busy=5), there("b")), Ledger(), {"b"}, id="others' requests count"
    ),
    pytest.param(
        fleet(there("a", busy=5), there("b")),
        Ledger({A: 5, B: 5}, counted={A: 5}),
        {"a", "b"},
        id="ours do not count twice",
    ),
    pytest.param(
        fleet(there("a", busy=5), there("b")),
        Ledger({B: 5}, counted={A: 5}),
        {"a"},
        id="what has ended since the report counts no more",
    ),
    pytest.param(
        fleet(there("a", busy=5), there("b", busy=5)),
        Ledger({A: 7, B: 3}, counted={A: 3, B: 3}),
        {"b"},
        id="what was sent since the report counts as well",
    ),
    pytest.param(
        fleet(there("a", busy=1), there("b")),
        Ledger({A: 4, B: 5}, counted={A: 4}),
        {"a", "b"},
        id="a report of less than ours does not make it less",
    ),
    pytest.param(
        fleet(there("a", weight=4), there("b")),
        Ledger({A: 8, B: 2}),
        {"a", "b"},
        id="a node of four times the weight takes four times as much",
    ),
    pytest.param(
        fleet(there("a", weight=4), there("b")), Ledger({A: 2, B: 2}), {"a"}, id="and comes first"
    ),
    pytest.param(
        fleet(there("a", "reloading"), there("b")),
        Ledger({B: 50}),
        {"b"},
        id="truly loaded comes before reloading",
    ),
    pytest.param(
        fleet(there("a", "reloading"), there("b", "reloading")),
        Ledger({B: 50}),
        {"a"},
        id="the least busy of those that reload",
    ),
    pytest.param(
        fleet(there("a"), there("b")),
        Ledger({B: 50}, faults={A: failed(suspect=True)}),
        {"b"},
        id="a suspect is passed over",
    ),
    pytest.param(
        fleet(there("a"), there("b", "reloading")),
        Ledger(faults={A: failed(suspect=True)}),
        {"b"},
        id="even for one that reloads",
    ),
    pytest.param(
        fleet(there("a")),
        Ledger(faults={A: failed(suspect=True)}),
        {"a"},
        id="the last one is never passed over",
    ),
    pytest.param(
        fleet(there("a"), there("b")),
        Ledger(faults={A: failed(suspect=True), B: failed(suspect=True)}),
        {"a", "b"},
        id="nor are the last two",
    ),
    pytest.param(
        fleet(there("a"), there("b")),
        Ledger({B: 6}, faults={A: failed(suspect=False)}),
        {"b"},
        id="a failure counts as eight requests",
    ),
    pytest.param(
        fleet(there("a"), there("b")),
        Ledger({B: 11}, faults={A: failed(suspect=False)}),
        {"a"},
        id="and no more",
    ),
]


@pytest.mark.parametrize(("snapshot", "ledger", "expected"), CHOICES)
def test_who_serves(snapshot: Snapshot, ledger: Ledger, expected: set[str]) -> None:
    assert who(snapshot, ledger) == expected


def test_an_old_report_is_not_believed() -> None:
    snapshot = fleet(there("a", busy=9), there("b"))
    stale = snapshot.policy.stale_after
    assert who(snapshot, now=NOW + stale) == {"b"}
    assert who(snapshot, now=NOW + stale + 0.1) == {"a", "b"}


def test_a_suspicion_ends_after_ten_seconds_and_the_penalty_fades() -> None:
    snapshot, ledger = fleet(there("a"), there("b")), Ledger({B: 3})
    ledger.faults[A] = failed(suspect=True)
    assert [who(snapshot, ledger, NOW + past) for past in (0, 9.9, 10.1)] == [{"b"}, {"b"}, {"a"}]
    fault = ledger.faults[A]
    assert [penalty(fault, NOW + past) for past in (0, 5, 10)] == [8, 4, 2]
    assert not is_over(fault, NOW + 10.1)
    assert is_over(fault, NOW + 60)


def test_failures_add_up_within_bounds() -> None:
    fault = None
    for _ in range(3):
        fault = worsened(fault, NOW, suspect=False)
    assert fault is not None
    assert penalty(fault, NOW) == 24
    for _ in range(10_000):
        fault = worsened(fault, NOW, suspect=False)
    assert penalty(fault, NOW + 60) < 1, "nobody is out for minutes"


def test_an_error_after_a_broken_connection_does_not_end_the_suspicion() -> None:
    fault = worsened(failed(suspect=True), NOW + 1, suspect=False)
    assert is_suspect(fault, NOW + 9)
    assert not is_suspect(fault, NOW + 11)


def test_a_clock_that_stands_still_or_lags_makes_no_penalty_grow() -> None:
    assert penalty(failed(suspect=False), NOW - 5) == 8


def test_our_own_request_can_be_left_out_of_a_score() -> None:
    snapshot = fleet(there("a", weight=2, busy=4))
    replica = snapshot.replicas["m"][0]
    ledger = Ledger({A: 3}, counted={A: 1})
    assert score(replica, snapshot, ledger, NOW) == 3
    assert score(replica, snapshot, ledger, NOW, without=1) == 2.5


def test_a_key_is_asked_for_only_where_it_decides() -> None:
    def must_not() -> int:
        raise AssertionError("the body is decoded for nothing")

    assert chosen(fleet(there("a")), affinity=must_not) == "a"
    assert chosen(fleet(there("a"), there("b")), Ledger({A: 5}), must_not) == "b"
    none = Policy(affinity=False)
    snapshot = Snapshot(
        nodes={"a": there("a"), "b": there("b")},
        replicas={"m": (Replica("a", "m", "loaded"), Replica("b", "m", "loaded"))},
        policy=none,
    )
    assert {chosen(snapshot, affinity=must_not, turn=turn) for turn in range(8)} == {"a", "b"}


FOUR = fleet(*(there(name) for name in "abcd"))
NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True)


@given(
    NAMES,
    st.lists(st.integers(0, 20), min_size=8, max_size=8),
    st.integers(0, 2**64 - 1),
    st.integers(0, 1 << 80),
    st.randoms(),
)
def test_the_order_of_the_replicas_decides_nothing(
    names: list[str], loads: list[int], key: int, turn: int, order: random.Random
) -> None:
    snapshot = fleet(*(there(name, weight=1 + at) for at, name in enumerate(names)))
    ledger = Ledger({(name, "m"): load for name, load in zip(names, loads, strict=False)})
    replicas = list(snapshot.replicas["m"])
    shuffled = replicas.copy()
    order.shuffle(shuffled)
    for affinity in (no_affinity, lambda: key):
        first = choose(replicas, snapshot, ledger, NOW, affinity, turn)
        assert choose(shuffled, snapshot, ledger, NOW, affinity, turn) is first


@pytest.mark.parametrize(
    ("key", "node"), [(0, "d"), (1, "b"), (0x0123456789ABCDEF, "a"), (2**64 - 1, "d")]
)
def test_every_process_chooses_alike(key: int, node: str) -> None:
    """Else several gateways before one fleet would pull a conversation apart."""
    assert chosen(FOUR, affinity=lambda: key) == node


def spread(pick: Callable[[int], str], count: int) -> Counter[str]:
    return Counter(pick(number) for number in range(count))


@pytest.mark.parametrize("first", [0, 1, 12345, 1 << 70])
def test_turns_are_spread_by_weight_in_every_window(first: int) -> None:
    snapshot = fleet(there("a"), there("b", weight=2), there("c", weight=5))
    shares = spread(lambda turn: chosen(snapshot, turn=first + turn), 80)
    assert abs(shares["a"] - 10) <= 2
    assert abs(shares["b"] - 20) <= 2
    assert abs(shares["c"] - 50) <= 2


def test_keys_are_spread_by_weight() -> None:
    snapshot = fleet(there("a"), there("b", weight=2), there("c", weight=5))
    shares = spread(lambda number: chosen(snapshot, affinity=keyed(number)), 8000)
    assert abs(shares["a"] - 1000) < 150
    assert abs(shares["b"] - 2000) < 200
    assert abs(shares["c"] - 5000) < 250


@given(NAMES, st.data())
def test_one_replica_more_or_less_moves_only_its_own_share(
    names: list[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(names))
    before = fleet(*(there(name) for name in names))
    after = fleet(*(there(name) for name in names if name != gone))
    for number in range(20 if len(names) > 1 else 0):
        was = chosen(before, affinity=keyed(number))
        now = chosen(after, affinity=keyed(number))
        assert now == was or was == gone


def test_another_weight_moves_keys_only_to_or_from_that_node() -> None:
    heavier = fleet(there("a", weight=3), *(there(name) for name in "bcd"))
    for number in range(200):
        was, now = (chosen(one, affinity=keyed(number)) for one in (FOUR, heavier))
        assert now in (was, "a")


def burst(affinity: Callable[[int], Affinity]) -> Counter[str]:
    """80 requests that no poll sees."""
    ledger = Ledger()
    for turn in range(80):
        key = (chosen(FOUR, ledger, affinity(turn), turn), "m")
        ledger.in_flight[key] = ledger.in_flight.get(key, 0) + 1
    return Counter({name: count for (name, _), count in ledger.in_flight.items()})


@given(st.integers(0, 1 << 40))
def test_a_burst_between_two_polls_is_spread_over_equals(seed: int) -> None:
    for affinity in (lambda _: no_affinity, lambda turn: keyed(seed + turn)):
        shares = burst(affinity)
        assert len(shares) == 4
        assert all(14 <= count <= 27 for count in shares.values()), shares


def test_a_crowd_with_one_key_spills_over_to_the_others() -> None:
    shares = burst(lambda _: keyed(1))
    assert all(14 <= count <= 27 for count in shares.values()), shares


@given(st.lists(st.booleans(), max_size=30))
def test_a_conversation_stays_where_it_is_as_long_as_that_is_no_busier(steps: list[bool]) -> None:
    home = chosen(FOUR, affinity=keyed(3))
    ledger = Ledger()
    for elsewhere in steps:  # one request more at home only after one more everywhere else
        for name in "abcd":
            if (name != home) == elsewhere:
                ledger.in_flight[name, "m"] = ledger.in_flight.get((name, "m"), 0) + 1
        lowest = min(ledger.in_flight.get((name, "m"), 0) for name in "abcd")
        if ledger.in_flight.get((home, "m"), 0) <= lowest + max(1, lowest / 4):
            assert chosen(FOUR, ledger, keyed(3)) == home
