"""Unloads on machines that have memory: once, behind a gate, and told once."""

from __future__ import annotations

import asyncio
import logging

import pytest

from cortexd import errors
from cortexd.config.catalogue import Profile
from cortexd.nodes.client import NodeError
from tests.control.household import House, Machine, live
from tests.control.test_room import LONG, home

SMALL = Profile("small", vram_mb=10000)


def evictions(house: House, reason: str) -> float | None:
    labels = {"model": "small", "node": "a", "reason": reason}
    return house.metrics.registry.get_sample_value("cortexd_evictions_total", labels)


def test_two_who_want_it_gone_are_one_unload(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def story(house: House) -> None:
        await house.ask("small")
        await asyncio.sleep(LONG)
        ends = await asyncio.gather(
            house.unloads.unload("a", "small", "room", "makes room"),
            house.unloads.unload("a", "small", "idle", "is idle"),
        )
        assert ends == [None, None]
        assert (evictions(house, "room"), evictions(house, "idle")) == (1, None)

    assert live(home(SMALL), story).notes == ["load small on a", "unload small from a"]
    assert sum("unloaded 'small' from a: makes room" in line for line in caplog.messages) == 1


def test_an_operators_unload_is_no_eviction() -> None:
    async def story(house: House) -> None:
        await house.ask("small")
        assert await house.operator.unload("small", force=True) == ["a"]
        assert evictions(house, "operator") is None

    live(home(SMALL), story)


def test_one_that_works_is_left_alone() -> None:
    async def story(house: House) -> None:
        working = house.asking("small", hold=60)
        await asyncio.sleep(10)
        end = await house.unloads.unload("a", "small", "idle", "is idle")
        assert end is not None
        assert end.kind is errors.BUSY
        assert not house.registry.ledger.gates
        assert await working == "a"

    assert live(home(SMALL), story).notes == ["load small on a"]


def test_it_goes_on_though_whoever_wanted_it_leaves() -> None:
    async def story(house: House) -> None:
        await house.ask("small")
        await asyncio.sleep(LONG)
        asked = asyncio.ensure_future(house.unloads.unload("a", "small", "room", "x"))
        await asyncio.sleep(0.1)
        asked.cancel()
        await asyncio.sleep(5)
        assert house.notes[-1] == "unload small from a"
        assert house.is_empty()

    live(home(SMALL), story)


def test_a_node_that_fails_to_unload_is_quoted() -> None:
    async def story(house: House) -> None:
        await house.ask("small")
        await asyncio.sleep(LONG)
        client = house.hosts["a"]

        async def fail(request: object, timeout: float) -> str:
            raise NodeError("/models/unload: 500 it is wedged", 500)

        client.unload = fail  # type: ignore[method-assign]
        end = await house.unloads.unload("a", "small", "room", "x")
        assert end is not None
        assert end.kind is errors.UNLOAD_FAILED
        assert "it is wedged" in end.message
        assert await house.ask("small") == "a", "it still serves"

    live(home(SMALL), story)


def test_until_its_memory_is_reported_nobody_is_told_that_there_is_no_room() -> None:
    first, second = Profile("first", vram_mb=20000), Profile("second", vram_mb=20000)
    third = Profile("third", vram_mb=20000)

    async def story(house: House) -> None:
        await house.ask("first")
        await asyncio.sleep(LONG)
        second = house.asking("second")
        ends = []
        for _ in range(12):  # at every moment of the swap
            ends.append(house.asking("third"))
            await asyncio.sleep(0.06)
        assert await second == "a"
        assert set(await asyncio.gather(*ends)) == {"a"}

    live(home(first, second, third, machines=(Machine("a", unload_takes=0.3),)), story)
