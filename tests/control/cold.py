"""What tests of cold loads share: nodes whose loads wait, those who wait for them, and what must
be left when all is over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading, Polling
from cortexd.config.units import Duration
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Answer, Fleet, running_fleet, until

FAST = Polling(interval=Duration(0.05), timeout=Duration(2), unhealthy_after=2)
SHORT = Loading(timeout=Duration(0.3))


@asynccontextmanager
async def fleet_with(loading: Loading | None = None, **neurons: FakeNeuron) -> AsyncIterator[Fleet]:
    config = Config(polling=FAST, loading=loading or Loading())
    async with running_fleet(Profile("m"), config=config, **neurons) as fleet:
        yield fleet


def held() -> FakeNeuron:
    neuron = FakeNeuron()
    neuron.release.clear()
    return neuron


async def is_empty(fleet: Fleet) -> None:
    """The table, the turns, the ledger and the gauges: nothing of a load is left."""
    ledger = fleet.gateway.registry.ledger
    await until(lambda: len(fleet.gateway.table) == 0 and not ledger.loading)
    assert not ledger.in_flight
    assert not ledger.turns
    assert sum(fleet.gateway.table.waiting().values()) == 0
    assert await fleet.metric("cortexd_load_waiting", model="m") == 0
    assert await fleet.metric("cortexd_oldest_waiter_seconds") == 0


def asking(fleet: Fleet, count: int) -> list[asyncio.Task[Answer]]:
    return [asyncio.create_task(fleet.ask()) for _ in range(count)]


async def waiting(fleet: Fleet, count: int) -> None:
    await until(lambda: sum(fleet.gateway.table.waiting().values()) == count)


def codes(answers: list[Answer]) -> Counter[str]:
    return Counter(answer.headers.get("x-cortex-code", str(answer.status)) for answer in answers)
