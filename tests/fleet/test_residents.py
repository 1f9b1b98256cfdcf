from __future__ import annotations

import math

import pytest

from cortexd.config.catalogue import Profile
from cortexd.config.units import Duration
from cortexd.fleet.residents import (
    Resident,
    at_a_glance,
    displaceable,
    idle_ttl,
    least_residency,
    may_displace,
    residents,
    stays,
)
from cortexd.fleet.snapshot import FootprintKey, Ledger, Node, Policy, Promise, Snapshot
from tests.fleet.fleet import fleet, held, node

NOW = 1000.0
KEY = ("a", "m")


def there(
    one: Node | None = None,
    *models: Profile,
    ledger: Ledger | None = None,
    policy: Policy | None = None,
    unasked: bool = False,
) -> Resident:
    """The only resident of a node, `m` unless it is given."""
    one = one or node("a", {"m": "loaded"})
    snapshot = fleet(one, models=models, policy=policy or Policy())
    found = residents(one, snapshot, ledger or Ledger(), NOW, unasked=unasked)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("status", ["unloaded", "failed", "unknown", "zombie"])
def test_only_models_that_hold_memory_are_residents(status: str) -> None:
    one = node("a", {"m": status})
    assert residents(one, fleet(one), Ledger(), NOW) == []


def test_a_model_is_on_its_own_devices_else_on_all() -> None:
    gpus = (24000, 24000, 24000)
    assert there(node("a", {"m": held(9000, 2, 1)}, gpus=gpus)).devices == (1, 2)
    assert there(node("a", {"m": held(9000)}, gpus=gpus)).devices == (0, 1, 2)
    assert there(node("a", {"m": held(9000, 7)}, gpus=gpus)).devices == (0, 1, 2)
    assert there(node("a", {"m": held(9000, 1, 1, 7)}, gpus=gpus)).devices == (1,)


def test_its_memory_is_split_evenly_over_its_devices() -> None:
    assert there(node("a", {"m": held(9000)}, gpus=(24000, 24000, 24000))).mb == 3000


def test_its_memory_is_what_the_node_says_else_measured_else_of_its_profile() -> None:
    profile, measured = Profile("m", vram_mb=7000), FootprintKey("m", "llamacpp", None, 1, "a")
    ledger = Ledger(footprints={measured: 6000.0})
    assert there(node("a", {"m": held(9000)}), profile, ledger=ledger).mb == 9000
    assert there(None, profile, ledger=ledger).mb == 6000
    assert there(None, profile).mb == 7000
    assert there().mb is None
    assert there(node("a", {"m": held(0)})).mb is None


def test_a_load_that_its_node_does_not_show_yet_is_there_and_only_needs_time() -> None:
    one = node("a", {"m": "unloaded"})
    ledger = Ledger(promises={KEY: Promise({0: 9000.0}), ("b", "n"): Promise({0: 1.0})})
    (found,) = residents(one, fleet(one), ledger, NOW)
    assert (found.model, found.devices, found.mb) == ("m", (0,), 9000)
    assert found.kept == "it is loading"


def test_a_load_that_runs_holds_what_it_was_promised() -> None:
    one = node("a", {"m": held(100, status="loading")})
    assert there(one, ledger=Ledger(promises={KEY: Promise({0: 9000.0}, {0: 20000.0})})).mb == 9000


def test_classes_are_those_of_the_profiles_and_100_outside_the_catalogue() -> None:
    assert there().priority == 100
    assert there(None, Profile("m")).priority == 100
    assert there(None, Profile("m", pinned_on=("a",))).priority == 1000
    assert there(None, Profile("m", pinned_on=("a",), residency_priority=7)).priority == 7


def test_the_least_recently_used_come_first() -> None:
    one = node("a", dict.fromkeys("xyz", "loaded"))
    ledger = Ledger(last_access={("a", "x"): 5.0, ("a", "z"): 3.0})
    assert [found.model for found in residents(one, fleet(one), ledger, NOW)] == ["y", "z", "x"]


def test_who_is_on_the_way_out_comes_first_whatever_it_has_just_finished() -> None:
    one = node("a", dict.fromkeys("xyz", "loaded"))
    ledger = Ledger(last_access={("a", "x"): NOW, ("a", "z"): 3.0}, gates={"x": {"a"}, "z": {"b"}})
    assert [found.model for found in residents(one, fleet(one), ledger, NOW)] == ["x", "y", "z"]


def test_a_model_that_has_answered_nobody_yet_is_kept_by_those_who_wait_for_that() -> None:
    for ledger in (Ledger(in_flight={KEY: 1}), Ledger(turns={KEY: lambda: None})):
        assert there(ledger=ledger).kept == "it is at work, and has answered nobody yet"
        ledger.served[KEY] = NOW - 100
        assert there(ledger=ledger).kept is None


def test_a_model_is_stubborn_only_while_it_works() -> None:
    ledger = Ledger(stubborn={KEY: NOW + 1}, in_flight={KEY: 1}, served={KEY: NOW - 100})
    assert there(ledger=ledger).is_stubborn
    ledger.stubborn[KEY] = NOW
    assert not there(ledger=ledger).is_stubborn
    idle = there(ledger=Ledger(stubborn={KEY: NOW + 1}))
    assert not idle.is_stubborn
    assert idle.is_idle


@pytest.mark.parametrize(
    ("ledger", "busy"),
    [
        (Ledger(), False),
        (Ledger(in_flight={KEY: 1}), True),
        (Ledger(in_flight={("b", "m"): 1}), False),
        (Ledger(turns={KEY: lambda: None}), True),
        (Ledger(loading={"m": "b"}), True),
        (Ledger(last_access={KEY: NOW}), False),
        (Ledger(gates={"m": {"a"}}), False),
    ],
)
def test_busy_is_who_works_or_is_waited_for(ledger: Ledger, busy: bool) -> None:
    assert there(ledger=ledger).busy is busy
    assert there(ledger=ledger).is_idle is not busy


@pytest.mark.parametrize(("ours", "busy"), [(0, True), (1, False), (2, False)])
def test_of_what_a_node_reports_ours_is_known_better(ours: int, busy: bool) -> None:
    """They were counted, and have ended since."""
    reported = node("a", {"m": "loaded"}, busy={"m": 1}, health_at=NOW)
    assert there(reported, ledger=Ledger(counted={KEY: ours})).busy is busy


@pytest.mark.parametrize(("age", "busy"), [(5.9, True), (6.1, False)])
def test_the_nodes_word_for_it_is_taken_while_it_is_fresh(age: float, busy: bool) -> None:
    assert there(node("a", {"m": "loaded"}, busy={"m": 1}, health_at=NOW - age)).busy is busy
    assert not there(node("a", {"m": "loaded"}, busy={"m": 0}, health_at=NOW - age)).busy


@pytest.mark.parametrize("status", ["loading", "reloading", "recovering"])
def test_what_comes_and_goes_by_itself_is_left_alone(status: str) -> None:
    assert there(node("a", {"m": status})).kept == f"it is {status}"


def test_nobody_has_to_go_when_eviction_is_off() -> None:
    assert there(policy=Policy(evicts=False)).kept == "eviction is turned off"


@pytest.mark.parametrize(
    ("least", "took", "seconds"),
    [(None, None, 15), (None, 5.0, 15), (None, 60.0, 120), (40.0, 60.0, 40)],
)
def test_a_fresh_model_stays_for_its_least_residency_from_its_first_answer(
    least: float | None, took: float | None, seconds: float
) -> None:
    ledger = Ledger(load_seconds={} if took is None else {KEY: took})
    policy = Policy(min_residency=least)
    assert least_residency(KEY, Snapshot(policy=policy), ledger) == seconds
    assert there(ledger=ledger, policy=policy).kept is None  # it has answered nobody yet
    ledger.served[KEY] = NOW - seconds + 1
    assert "1 s left" in str(there(ledger=ledger, policy=policy).kept)
    ledger.served[KEY] = NOW - seconds
    assert there(ledger=ledger, policy=policy).kept is None


@pytest.mark.parametrize(
    ("profile", "policy", "ttl"),
    [
        (None, Policy(), 600),
        (None, Policy(idle_ttl=60.0), 60),
        (Profile("m", idle_ttl=Duration(30)), Policy(idle_ttl=60.0), 30),
    ],
)
def test_a_load_that_nobody_asked_for_leaves_alone_what_was_used_within_its_idle_ttl(
    profile: Profile | None, policy: Policy, ttl: float
) -> None:
    models = (profile,) if profile else ()
    young = Ledger(last_access={KEY: NOW - ttl + 1})
    old = Ledger(last_access={KEY: NOW - ttl})
    assert there(None, *models, ledger=young, policy=policy).is_idle
    assert not there(None, *models, ledger=young, policy=policy, unasked=True).is_idle
    assert there(None, *models, ledger=old, policy=policy, unasked=True).is_idle
    assert there(None, *models, policy=policy, unasked=True).is_idle


@pytest.mark.parametrize("profile", [Profile("m", preload=True), Profile("m", replicas=2)])
def test_two_models_that_are_to_stay_never_drive_out_each_other(profile: Profile) -> None:
    assert not there(None, profile, unasked=True).is_idle
    assert there(None, profile).is_idle


def test_the_idle_ttl_is_that_of_the_profile_else_of_the_fleet_else_for_ever() -> None:
    assert idle_ttl(None, Snapshot()) is None
    assert idle_ttl(Profile("m"), Snapshot(policy=Policy(idle_ttl=60.0))) == 60
    assert idle_ttl(Profile("m", idle_ttl=Duration(0)), Snapshot(policy=Policy(idle_ttl=60.0))) == 0


@pytest.mark.parametrize(
    ("mine", "its", "may"), [(100, 100, True), (100, 101, False), (2, 1, True)]
)
def test_a_model_may_displace_its_own_class_and_those_below(mine: int, its: int, may: bool) -> None:
    profile = Profile("m", residency_priority=mine)
    assert may_displace(profile, Resident("a", "x", priority=its)) is may
    assert not may_displace(profile, Resident("a", "m", priority=its))


def test_displaceable_are_the_idle_ones_of_a_class_that_may_be_displaced() -> None:
    one = node("a", dict.fromkeys(("busy", "high", "idle", "old"), "loaded"))
    ledger = Ledger(in_flight={("a", "busy"): 1}, last_access={("a", "idle"): 5.0})
    snapshot = fleet(one, models=(Profile("high", residency_priority=200),))
    found = displaceable(Profile("m"), one, snapshot, ledger, NOW)
    assert [resident.model for resident in found] == ["old", "idle"]
    ledger.last_access["a", "old"] = NOW - 1
    found = displaceable(Profile("m"), one, snapshot, ledger, NOW, unasked=True)
    assert [resident.model for resident in found] == ["idle"]


def test_a_node_that_was_never_described_has_residents_without_devices() -> None:
    found = there(node("a", {"m": held(5, 0)}, gpus=None))
    assert (found.devices, found.mb) == ((), None)


def test_who_stays_is_told_with_the_class_or_the_reason() -> None:
    one = node("a", dict.fromkeys(("busy", "high", "idle", "m", "spared"), "loaded"))
    ledger = Ledger(
        in_flight={("a", "busy"): 1},
        last_access={("a", "high"): 5.0, ("a", "idle"): NOW - 1},
        spared={("a", "spared"): NOW + 1},
        promises={("a", "n"): Promise({0: 1.0}), ("b", "k"): Promise({0: 1.0})},
    )
    snapshot = fleet(one, models=(Profile("high", residency_priority=200),))
    held = [
        ("busy", 100, "it is at work, and has answered nobody yet"),
        ("m", 100, "it is at work"),
        ("n", 100, "it is loading"),
        ("spared", 100, "it would not leave a moment ago"),
        ("high", 200, None),
    ]
    assert stays(Profile("m"), one, snapshot, ledger, NOW) == held
    (*others, idle) = stays(Profile("m"), one, snapshot, ledger, NOW, unasked=True)
    assert (others, idle) == (held, ("idle", 100, "it was asked for in the last 10m"))


@pytest.mark.parametrize(
    ("ledger", "unasked", "is_idle"),
    [
        (Ledger(), False, True),
        (Ledger(in_flight={KEY: 1}), False, False),
        (Ledger(served={KEY: NOW - 14}), False, False),
        (Ledger(served={KEY: NOW - 15}), False, True),
        (Ledger(last_access={KEY: NOW - 1}), False, True),
        (Ledger(last_access={KEY: NOW - 1}), True, False),
    ],
)
def test_a_glance_sees_who_may_leave_and_what_it_holds_at_most(
    ledger: Ledger, unasked: bool, is_idle: bool
) -> None:
    one = node("a", {"m": held(9000, 0, 1), "x": "unloaded"}, gpus=(24000, 24000, 24000))
    snapshot, seen = fleet(one), [(ledger.last_access.get(KEY, 0.0), 9000, 2)]
    found = at_a_glance(Profile("n"), one, {}, snapshot, ledger, NOW, unasked=unasked)
    assert found == ((seen, []) if is_idle else ([], seen))
    assert at_a_glance(Profile("n"), one, {"m": 101}, snapshot, ledger, NOW) == ([], [])


def test_what_a_glance_does_not_see_may_be_all_the_memory_there_is() -> None:
    one = node("a", {"m": held(None)}, gpus=(24000, 24000))
    assert at_a_glance(Profile("n"), one, {}, fleet(one), Ledger(), NOW)[0] == [(0, math.inf, 2)]
    coming = Ledger(promises={("a", "x"): Promise({1: 5.0}), ("b", "y"): Promise({1: 5.0})})
    assert at_a_glance(Profile("n"), one, {}, fleet(one), coming, NOW)[1] == [(0, math.inf, 2)]
