"""A model that is loading, and somebody on a connection who hears of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Gateway, Loading, Polling, Upstream
from cortexd.config.units import Duration
from tests.fakes import FakeNeuron
from tests.functional.raw import Client, Heard, connected
from tests.gateway.dialects import (
    engine,
)
from tests.gateway.fleet import Fleet, running_fleet

SOON, NEVER = 0.03, 60.0  # seconds of silence; a test is over long before the second


def keepalive(
    seconds: float = SOON,
    *,
    timeout: float = 60.0,
    expose_route: bool = True,
    prefill: float = NEVER,
) -> Config:
    """A configuration with these seconds of silence. prefill: on a model that is loaded."""
    return Config(
        polling=Polling(interval=Duration(0.05), timeout=Duration(2), unhealthy_after=2),
        loading=Loading(timeout=Duration(timeout), keepalive=Duration(seconds)),
        upstream=Upstream(keepalive=Duration(prefill)),
        gateway=Gateway(expose_route=expose_route),
    )


@asynccontextmanager
async def loading(
    neuron: FakeNeuron | None = None, config: Config | None = None, model: str = "m", **more: Any
) -> AsyncIterator[tuple[Fleet, FakeNeuron, Client]]:
    """A gateway before one node whose loads wait, and a connection to it."""
    neuron = neuron or engine()
    async with (
        running_fleet(Profile(model), config=config or keepalive(), a=neuron, **more) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        yield fleet, neuron, client


async def a_sign_of_life(client: Client) -> bytes:
    """One more, with the head if it is the first."""
    heard = await client.read_until(b"\n\r\n")
    while heard.endswith(b"\r\n\r\n"):  # the head: no event ends so
        heard += await client.read_until(b"\n\r\n")
    return heard


async def heard_over(client: Client, neuron: FakeNeuron, signs: int = 3) -> Heard:
    """The answer of a model that is loaded after so many signs of life."""
    so_far = b"".join([await a_sign_of_life(client) for _ in range(signs)])
    neuron.release.set()
    return await client.read_answer(so_far=so_far)
