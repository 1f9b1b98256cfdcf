"""Memory that a node frees or reports late is waited for, and evicts no second model."""

from __future__ import annotations

import asyncio

import pytest

from cortexd.config.catalogue import Profile
from tests.control.household import House, Machine
from tests.control.test_room import FULL, LONG, home, tell

BIG, LARGE = Profile("big", vram_mb=14000), Profile("large", vram_mb=16000)
INNOCENT = Profile("innocent", vram_mb=8000)
ALL = (BIG, LARGE, INNOCENT)


async def fill(house: House) -> None:
    """Put two idle models on the machine, of which `big` is the older one."""
    assert await house.ask("big") == "a"
    assert await house.ask("innocent") == "a"
    await asyncio.sleep(LONG)
    assert await house.ask("innocent") == "a"
    await asyncio.sleep(LONG)


@pytest.mark.parametrize("seconds", [0.0, 5.0, 15.0, 60.0, 200.0])
def test_memory_that_is_reported_late_evicts_no_second_model(seconds: float) -> None:
    async def story(house: House) -> None:
        await fill(house)
        assert await house.ask("large") == "a"

    told = tell(home(*ALL, machines=(Machine("a", reports_late=seconds),)), story)
    assert told[2:] == ["unload big from a", "load large on a"]


def test_memory_that_an_operator_freed_is_waited_for() -> None:
    async def story(house: House) -> None:
        await fill(house)
        assert await house.operator.unload("big") == ["a"]
        assert await house.ask("large") == "a"

    told = tell(home(*ALL, machines=(Machine("a", reports_late=20.0),)), story)
    assert told[2:] == ["unload big from a", "load large on a"]


def test_memory_that_is_never_reported_is_waited_for_within_the_load_timeout() -> None:
    async def story(house: House) -> None:
        await fill(house)
        assert await house.ask("large") == "no_room"

    told = tell(home(*ALL, machines=(Machine("a", reports_late=1e9),), timeout=100), story)
    assert told[2:] == ["unload big from a"]


def test_memory_that_never_comes_is_given_up_in_the_end() -> None:
    machine = Machine("a", reports_late=1e9)

    async def story(house: House) -> None:
        await fill(house)
        asking = house.asking("medium")
        await asyncio.sleep(330)
        assert house.notes[2:] == ["unload big from a", "unload innocent from a"]
        machine.reports_late = 0.0
        assert await asking == "a"

    medium = Profile("medium", vram_mb=9000)
    tell(home(*ALL, medium, machines=(machine,), timeout=1000), story)


def test_room_on_another_node_comes_before_memory_that_is_coming() -> None:
    machines = Machine("a", reports_late=1000.0), Machine("b")

    async def story(house: House) -> None:
        house.operator.drain("b")
        await fill(house)
        await house.operator.unload("big")
        house.operator.undrain("b")
        assert await house.ask("large") == "b"

    tell(home(*ALL, machines=machines), story)


def test_a_load_that_a_node_has_no_room_for_right_after_an_unload_is_tried_again() -> None:
    unknown = Profile("unknown")  # its size is not known, so that only the node can say no
    machine = Machine("a", sizes={"unknown": 16000}, frees_late=15.0)

    async def story(house: House) -> None:
        await fill(house)
        assert await house.operator.unload("big") == ["a"]
        assert await house.ask("unknown") == "a"
        assert not house.registry.ledger.failures

    told = tell(home(*ALL, unknown, machines=(machine,)), story)
    assert told[2:] == [
        "unload big from a",
        "load unknown on a",
        "out of memory: unknown on a",
        "load unknown on a",
    ]


def test_memory_that_is_reported_before_it_is_free_costs_one_more_try() -> None:
    machine = Machine("a")

    async def story(house: House) -> None:
        await fill(house)
        host = house.hosts["a"]
        load = host.load

        async def late(request: object) -> str:
            host.load = load  # type: ignore[method-assign]
            house.notes.append("not yet")
            raise FULL

        host.load = late  # type: ignore[method-assign, assignment]
        assert await house.ask("large") == "a"

    told = tell(home(*ALL, machines=(machine,)), story)
    assert told[2:] == ["unload big from a", "not yet", "load large on a"]


def test_after_a_cancelled_load_nothing_is_known_to_be_coming() -> None:
    machine = Machine("a", load_takes=30.0)

    async def story(house: House) -> None:
        asking = house.asking("big")
        await asyncio.sleep(5)
        await house.operator.unload("big", force=True)
        assert await asking == "cold_load_failed"
        assert not house.registry.ledger.freed

    tell(home(*ALL, machines=(machine,)), story)
