from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.fleet.memory import before
from cortexd.fleet.promises import (
    NEVER_REPORTED,
    PARTLY_REPORTED,
    begun,
    freed,
    given_back,
    reported,
    under_way,
    unloaded,
)
from cortexd.fleet.snapshot import FreedMemory, Ledger, Node, Promise
from cortexd.wire.neuron import DeviceHealth, Health
from tests.fleet.fleet import fleet, node

ONE, TWO, THREE = ("a", "one"), ("a", "two"), ("a", "three")


def reporting(*free_mb: float) -> Node:
    gauges = [DeviceHealth(index, vram_free_mb=mb) for index, mb in enumerate(free_mb)]
    return node("a", gpus=(32_000,) * len(free_mb), health=Health(devices=gauges))


def test_a_load_that_ended_first_is_not_forgotten_by_the_one_it_ran_beside() -> None:
    # 32,000 free; one takes 13,000 slowly; two takes 9,500, is done and reported, and its promise
    # is gone; one has still 2,600 to take of what the node reports to be free.
    ledger = Ledger()
    ledger.promises.update(begun({}, ONE, {0: 13_000}, {0: 32_000}))
    there = before(reporting(32_000), fleet(), ledger)
    ledger.promises.update(begun(ledger.promises, TWO, {0: 9_500}, there))
    del ledger.promises[TWO]
    half_done = reporting(32_000 - 9_500 - 10_400)
    assert before(half_done, fleet(), ledger) == {0: 9_500}


def test_a_load_binds_only_the_devices_that_it_takes() -> None:
    promises = begun({}, ONE, {1: 13_000}, {0: 600, 1: 32_000})
    # What was full when it began may be free by now.
    assert before(reporting(32_000, 32_000), fleet(), Ledger(promises=promises)) == {
        0: 32_000,
        1: 19_000,
    }


def test_a_load_that_has_failed_gives_back_what_the_others_had_left_to_it() -> None:
    promises = begun({}, ONE, {0: 13_000}, {0: 32_000})
    promises |= begun(promises, TWO, {0: 9_500}, {0: 19_000})
    assert promises[ONE].before == {0: 22_500}
    assert given_back(promises, TWO)[ONE].before == {0: 32_000}
    assert given_back(promises, THREE) == {}


def test_what_a_model_leaves_is_there_beside_a_load_under_way() -> None:
    promises = begun({}, ONE, {0: 10_000}, {0: 12_000})
    changed = freed(promises, TWO, {0: 20_000}, under_way(promises, "a"))
    assert before(reporting(30_000), fleet(), Ledger(promises=changed)) == {0: 22_000}


def test_who_began_after_a_model_was_told_to_leave_knows_of_its_memory_already() -> None:
    seen_by = under_way({}, "a")
    promises = begun({}, ONE, {0: 10_000}, {0: 32_000})
    assert freed(promises, TWO, {0: 20_000}, seen_by) == {}


def test_other_nodes_and_loads_that_have_not_begun_are_left_alone() -> None:
    waiting = Promise({0: 5_000})
    elsewhere = Promise({0: 5_000}, {0: 9_000})
    promises = {THREE: waiting, ("b", "one"): elsewhere}
    assert set(begun(promises, ONE, {0: 1_000}, {0: 9_000})) == {ONE}
    assert under_way(promises, "a") == frozenset()


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.floats(0, 1)), max_size=40))
def test_however_loads_overlap_nothing_is_promised_twice(
    steps: list[tuple[str, bool, float]],
) -> None:
    """Loads of 6,000 MiB on one device of 32,000, each taking its memory bit by bit; an end is
    reported, and its promise gone, at once."""
    need, ledger = 6_000.0, Ledger()
    taken: dict[str, float] = {}
    done: dict[str, float] = {}
    for name, ends, progress in steps:
        key = ("a", name)
        if name in taken:
            taken[name] = max(taken[name], need * progress)
            if ends:
                del taken[name], ledger.promises[key]
                done[name] = need
        elif name not in done:
            free = 32_000 - sum(taken.values()) - sum(done.values())
            there = before(reporting(free), fleet(), ledger)
            if there[0] >= need:
                ledger.promises.update(begun(ledger.promises, key, {0: need}, there))
                taken[name] = 0.0
        assert need * len(taken) + sum(done.values()) <= 32_000


def freed_by(*unloads: dict[int, float]) -> FreedMemory:
    known: FreedMemory | None = None
    for at, devices in enumerate(unloads):
        known = unloaded(known, devices, {0: 2000.0, 1: 2000.0}, float(at), 0)
    assert known is not None
    return known


def test_memory_is_coming_until_it_is_reported() -> None:
    known = freed_by({0: 10000.0})
    assert known.left == {0: 10000.0}
    same = reported(known, {0: 2000.0}, 100.0, 0)
    assert same is not None
    assert same.left == {0: 10000.0}
    part = reported(same, {0: 8000.0}, 102.0, 0)
    assert part is not None
    assert (part.left, part.risen) == ({0: 4000.0}, 102.0)
    assert reported(part, {0: 11500.0}, 104.0, 0) is None


def test_memory_of_two_unloads_in_a_row_is_added() -> None:
    known = freed_by({0: 10000.0}, {0: 8000.0, 1: 4000.0})
    assert known.left == {0: 18000.0, 1: 4000.0}
    part = reported(known, {0: 12000.0, 1: 2000.0}, 5.0, 0)
    assert part is not None
    assert part.left == {0: 8000.0, 1: 4000.0}
    assert reported(part, {0: 20000.0, 1: 6000.0}, 9.0, 0) is None


@pytest.mark.parametrize(
    ("free", "at", "epoch"),
    [
        ({0: 2000.0}, NEVER_REPORTED + 1, 0),
        ({0: 6000.0}, PARTLY_REPORTED + 6, 0),
        ({0: 2000.0}, 1.0, 1),
    ],
    ids=["never", "only a part", "the node restarted"],
)
def test_memory_that_never_comes_is_given_up_after_its_bound(
    free: dict[int, float], at: float, epoch: int
) -> None:
    known = reported(freed_by({0: 10000.0}), free, 5.0, 0)
    assert known is not None
    assert reported(known, free, at, epoch) is None


def test_an_unload_after_a_restart_begins_anew() -> None:
    again = unloaded(freed_by({0: 10000.0}), {0: 500.0}, {0: 9000.0}, 3.0, 1)
    assert (again.left, again.before, again.epoch) == ({0: 500.0}, {0: 9000.0}, 1)
