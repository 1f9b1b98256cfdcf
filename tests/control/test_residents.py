"""What stays and what goes without being asked for, on machines that have memory."""

from __future__ import annotations

import asyncio

from cortexd.config.catalogue import Profile
from cortexd.config.units import Duration
from cortexd.fleet.snapshot import Policy
from cortexd.nodes.client import NodeError
from tests.control.household import House, Machine
from tests.control.test_room import LONG, home, tell

KEPT = Profile("kept", vram_mb=18000, preload=True)
SMALL = Profile("small", vram_mb=10000)


def test_a_preloaded_model_is_there_before_anybody_asks() -> None:
    async def story(house: House) -> None:
        await asyncio.sleep(LONG)
        assert house.notes == ["load kept on a"]

    assert tell(home(KEPT), story) == ["load kept on a"]


def test_so_many_copies_are_kept_on_different_nodes() -> None:
    async def story(house: House) -> None:
        await asyncio.sleep(LONG)

    twice = Profile("twice", vram_mb=10000, replicas=2)
    machines = (Machine("a"), Machine("b"), Machine("c"))
    assert tell(home(twice, machines=machines), story) == ["load twice on a", "load twice on b"]


def test_a_copy_whose_node_is_lost_is_loaded_elsewhere() -> None:
    lost = Machine("a")

    async def story(house: House) -> None:
        await asyncio.sleep(LONG)
        lost.is_up = False
        await asyncio.sleep(LONG)

    told = tell(home(KEPT, machines=(lost, Machine("b"))), story)
    assert told == ["load kept on a", "load kept on b"]


def test_a_preloaded_model_comes_back_when_room_returns() -> None:
    async def story(house: House) -> None:
        await asyncio.sleep(LONG)
        assert await house.ask("small") == "a"
        await asyncio.sleep(500)
        assert house.notes[-1] == "load small on a", "who served a moment ago is not displaced"
        await asyncio.sleep(200)

    told = tell(home(KEPT, SMALL), story)
    assert told == [
        "load kept on a",
        "unload kept from a",
        "load small on a",
        "unload small from a",
        "load kept on a",
    ]


def test_a_preloaded_model_waits_for_nobody() -> None:
    async def story(house: House) -> None:
        await asyncio.sleep(LONG)
        assert await house.ask("small") == "a"
        working = house.asking("small", hold=2000)
        await asyncio.sleep(1900)
        assert house.notes[-1] == "load small on a"
        assert not house.registry.ledger.gates
        await working

    tell(home(KEPT, SMALL), story)


def test_what_is_kept_is_not_let_go_for_being_idle() -> None:
    async def story(house: House) -> None:
        await asyncio.sleep(1000)

    kept = Profile("kept", vram_mb=18000, preload=True, idle_ttl=Duration(60))
    policy = Policy(idle_ttl=60)
    assert tell(home(kept, policy=policy), story) == ["load kept on a"]


def test_the_fleet_may_have_a_time_after_which_whatever_is_idle_goes() -> None:
    async def story(house: House) -> None:
        await house.ask("small")
        await asyncio.sleep(LONG)

    told = tell(home(SMALL, policy=Policy(idle_ttl=60)), story)
    assert told == ["load small on a", "unload small from a"]


def test_what_works_is_not_let_go_however_long_it_works() -> None:
    async def story(house: House) -> None:
        assert await house.ask("small", hold=LONG) == "a"
        assert house.notes == ["load small on a"]

    tell(home(SMALL, policy=Policy(idle_ttl=20)), story)


def test_a_preload_that_fails_is_tried_again_with_ever_longer_pauses() -> None:
    machine = Machine("a", refuses={"kept": NodeError("/models/load: 500 no disk", 500)})

    async def story(house: House) -> None:
        await asyncio.sleep(200)
        machine.refuses.clear()

    told = tell(home(KEPT, machines=(machine,)), story)
    assert 3 <= len(told) <= 6
