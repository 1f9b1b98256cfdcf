from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortexd.control.entry import Entry
from cortexd.control.lifecycle import Event
from cortexd.control.supervision import RESTART_GRACE, STALL, loss
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import Model, Progress
from tests.fleet.fleet import node

STALE = 6.0


def under_way(*, is_called: bool = True) -> Entry:
    entry = Entry("m", "a", deadline=1e9, is_ours=True)
    entry.happens(Event.STARTED)
    entry.begins(epoch=0)
    entry.is_called = is_called
    return entry


def host(status: str | None = None, **fields: Any) -> Node:
    return node("a", {"m": status} if status else {}, **fields)


async def test_load_on_a_node_that_answers_goes_on() -> None:
    assert loss(under_way(), host(), 100.0, STALE) is None
    assert loss(under_way(), host(up=False), 100.0, STALE) is None


async def test_load_on_a_node_that_was_removed_is_lost() -> None:
    assert "removed" in (loss(under_way(), None, 100.0, STALE) or "")


async def test_load_whose_call_is_open_is_lost_some_time_after_a_restart() -> None:
    entry, other = under_way(), host(epoch=1)
    assert loss(entry, other, 100.0, STALE) is None
    assert loss(entry, other, 100.0 + RESTART_GRACE - 1, STALE) is None
    assert "restarted" in (loss(entry, other, 100.0 + RESTART_GRACE, STALE) or "")


async def test_load_whose_call_has_ended_is_lost_with_a_restart() -> None:
    assert "restarted" in (loss(under_way(is_called=False), host(epoch=1), 1.0, STALE) or "")


@pytest.mark.parametrize("is_called", [True, False])
@pytest.mark.parametrize("status", ["loading", "reloading", "loaded"])
async def test_load_that_is_listed_goes_on_after_a_restart(status: str, is_called: bool) -> None:
    entry, other = under_way(is_called=is_called), host(status, epoch=1)
    for moment in (100.0, 1000.0):
        assert loss(entry, other, moment, STALE) is None
    # It was no restart: what is seen later counts anew.
    assert entry.epoch == 1


def seen_at(contact: float, fraction: float) -> Node:
    models = {"m": Model("m", "loading", progress=Progress("weights", fraction))}
    return msgspec.structs.replace(node("a", dict(models)), last_contact=contact)


async def reported_every(seconds: float, entry: Entry, until: float) -> str | None:
    at, words = 0.0, None
    while at <= until and words is None:
        one = seen_at(at, 0.5)
        entry.notes(one.models["m"])
        words = loss(entry, one, at, STALE)
        at += seconds
    return words


async def test_load_that_makes_no_progress_is_lost() -> None:
    assert await reported_every(2.0, under_way(), STALL - 10) is None
    assert "makes no progress at 50%" in (await reported_every(2.0, under_way(), STALL + 10) or "")


async def test_suspended_time_does_not_count_as_time_without_progress() -> None:
    entry = under_way()
    assert await reported_every(2.0, entry, 100.0) is None
    later = seen_at(100_000.0, 0.5)
    entry.notes(later.models["m"])
    assert loss(entry, later, 100_000.0, STALE) is None
    # Nor is the time in which the node does not answer at all.
    assert loss(entry, later, 200_000.0, STALE) is None


async def test_progress_resets_the_time_without_progress() -> None:
    entry = under_way()
    assert await reported_every(2.0, entry, STALL - 10) is None
    moved = seen_at(STALL, 0.6)
    assert entry.notes(moved.models["m"])
    assert loss(entry, moved, STALL, STALE) is None
    assert entry.still < STALE + 1
