"""An hour of one household's traffic in five minutes: three models share memory for two."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.functional.swapping import MODELS, Answers, Household, household

QUICK: Final = 12.0  # times as fast as the hour that is played
LUNCH: Final = (24.0, 31.0)  # minutes
RUSH: Final = (40.0, 47.0)
LEAST_SWAPS: Final = 10
WORDS: Final = ("Name three colours.", "Write a poem on rain.", "What is a swap?", "Count to ten.")


class Visit(NamedTuple):
    """What one client asks for at one time, all at once. minute: of the hour."""

    minute: float
    client: str
    model: str
    tokens: tuple[int, ...]


def script(seed: int) -> list[Visit]:
    """Who asks for what, and when. At lunch nobody does; in the rush two of them never pause.

    `desk` holds conversations, with time to think between two turns. `agent` runs through tasks,
    request after request. `batch` comes now and then, with all of its requests at once.
    """
    dice = random.Random(seed)
    visits = [
        visit
        for visit in (*_desk(dice), *_agent(dice), *_batch(dice))
        if not LUNCH[0] <= visit.minute < LUNCH[1]
    ]
    # By then nothing is loaded any more. South wakes `mail` by itself, and the others come in the
    # middle of that.
    visits.append(Visit(LUNCH[1] - 0.1, "batch", "mail", (24, 16, 32)))
    visits += [Visit(LUNCH[1], "desk", "chat", (48,)), Visit(LUNCH[1], "agent", "code", (32,))]
    return sorted(visit for visit in visits if visit.minute < 60)


def _desk(dice: random.Random) -> Iterator[Visit]:
    minute = 0.0
    while minute < 60:
        model = dice.choices(["chat", "code", "mail"], [6, 2, 2])[0]
        for _ in range(dice.randint(2, 6)):
            yield Visit(minute, "desk", model, (dice.randint(16, 96),))
            minute += dice.uniform(0.2, 0.8)
        minute = _after_lunch(minute + dice.uniform(0.0, 2.0))


def _agent(dice: random.Random) -> Iterator[Visit]:
    minute = 3.0
    while minute < 60:
        model = dice.choices(["chat", "code", "mail"], [1, 6, 1])[0]
        for _ in range(dice.randint(4, 10)):
            yield Visit(minute, "agent", model, (dice.randint(8, 32),))
            minute += dice.uniform(0.05, 0.15)
        minute = _after_lunch(minute + dice.uniform(1.0, 3.0))


def _batch(dice: random.Random) -> Iterator[Visit]:
    minute, models = 6.0, cycle(["mail", "mail", "chat", "mail", "code"])
    while minute < 60:
        count = dice.randint(4, 10)
        yield Visit(minute, "batch", next(models), tuple(dice.choices(range(8, 48), k=count)))
        minute = _after_lunch(minute + dice.uniform(1.5, 4.0))


def _after_lunch(minute: float) -> float:
    return LUNCH[1] if LUNCH[0] <= minute < LUNCH[1] else minute


class Play:
    """The script, played. A client does one thing after the other; a burst is one thing."""

    def __init__(self, house: Household) -> None:
        self.house = house
        self.heard = Answers()
        self.asked = 0
        self.failed: list[str] = []
        self._began = asyncio.get_running_loop().time()

    async def run(self, visits: list[Visit]) -> None:
        """Until all have had their answers."""
        async with asyncio.TaskGroup() as clients:
            for name in ("desk", "agent", "batch"):
                own = [visit for visit in visits if visit.client == name]
                clients.create_task(self._client(own))
            for model in ("chat", "code"):
                for _ in range(2):  # so that it is never idle
                    clients.create_task(self._rush(model))

    async def _client(self, visits: list[Visit]) -> None:
        for visit in visits:
            await self._until(visit.minute)
            async with asyncio.TaskGroup() as burst:
                for number, tokens in enumerate(visit.tokens):
                    burst.create_task(self._ask(visit.client, number, visit.model, tokens))

    async def _rush(self, model: str) -> None:
        await self._until(RUSH[0])
        while self._minute < RUSH[1]:
            await self._ask("desk", 0, model, 64)

    async def _ask(self, client: str, number: int, model: str, tokens: int) -> None:
        house = self.house
        ways = {"desk": [house.stream], "agent": [house.message]}
        way = ways.get(client, [house.raw, house.message, house.stream])
        words = WORDS[(tokens + number) % len(WORDS)]
        self.asked += 1
        try:
            await way[number % len(way)](model, words, tokens, self.heard)
        except Exception as fault:  # noqa: BLE001 - whatever a client hears of it
            self.failed.append(f"minute {self._minute:.1f}, {client}, {model}: {fault!r}")

    @property
    def _minute(self) -> float:
        return (asyncio.get_running_loop().time() - self._began) * QUICK / 60

    async def _until(self, minute: float) -> None:
        await asyncio.sleep(max(0.0, minute - self._minute) * 60 / QUICK)


@pytest.mark.soak
@pytest.mark.timeout(700)
async def test_an_hour_of_swaps_costs_nobody_an_answer(tmp_path: Path) -> None:
    async with household(
        tmp_path,
        read_mb_s=40,  # 2.4 s for a load: half a minute of the hour
        # Twelve times as quick as well. The defaults are 30 s, 2 min and, where loads take half a
        # minute, a minute; idle models go after three.
        eviction={
            "patience": "2500ms",
            "gate_timeout": "10s",
            "min_residency": "5s",
            "idle_ttl": "15s",
        },
        loading={"keepalive": "800ms"},
    ) as house:
        began, play = time.monotonic(), Play(house)
        await play.run(script(seed=5))
        took = time.monotonic() - began
        heard, unloads = play.heard, house.unloads()
        print(  # noqa: T201 - what was measured
            f"{took:.0f} s, {play.asked} requests, {heard.streams} of them streams, "
            f"routes {dict(heard.routes)}; longest wait {max(heard.waits):.1f} s; "
            f"unloads {dict(unloads)}"
        )
        assert not play.failed
        assert len(heard.waits) == play.asked
        assert set(heard.routes) == {"cold", "lazy", "loaded"}
        swaps = {key: count for key, count in unloads.items() if key[2] == "room"}
        assert {model for model, _, _ in swaps} == set(MODELS)
        assert {node for _, node, _ in swaps} == {"north", "south"}
        assert sum(swaps.values()) >= LEAST_SWAPS
        assert any(reason == "idle" for _, _, reason in unloads), "nobody was at lunch"
        # In the rush nobody makes room by himself.
        assert any("gets no new requests" in line for line in house.said())
        await house.assert_log_and_metrics_agree()
        await house.assert_nothing_is_left()
        assert not [line for line in house.said() if "failed" in line or "Traceback" in line]
