"""What a crowd costs in memory: clients that are idle, and clients that read nothing."""

from __future__ import annotations

import asyncio
import resource
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.fakes import FakeNeuron
from tests.functional.faults import Origin, Send, Stall
from tests.functional.processes import daemon, gateway_config
from tests.functional.raw import connected, post
from tests.functional.test_leaks import Process
from tests.proxy.stage import ASKED_STREAM, SSE_HEAD, chunks, served_by
from tests.waiting import GUARD

IDLE, IDLE_KIB = 8000, 15
STALLED, STALLED_KIB = 200, 384
ITS_OWN = 4  # descriptors that the gateway opens and closes meanwhile, to poll its node


def address_of(url: str) -> tuple[str, int]:
    at = urlsplit(url)
    assert at.hostname is not None
    assert at.port is not None
    return at.hostname, at.port


@pytest.mark.soak
async def test_idle_connections_are_cheap(tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    neuron = FakeNeuron({"m": "loaded"})
    async with neuron.running(), AsyncExitStack() as stack:
        config = gateway_config({"a": neuron.url})
        gateway = await stack.enter_async_context(daemon(tmp_path, "gateway", "serve", config))
        process = Process(gateway.pid, gateway.url)
        await process.wait_quiet()
        before, descriptors = process.resident, process.descriptors
        for _ in range(IDLE):
            await stack.enter_async_context(connected(address_of(gateway.url)))
        async with asyncio.timeout(GUARD):
            while process.descriptors < descriptors + IDLE - ITS_OWN:
                await asyncio.sleep(0.05)
        each = (process.resident - before) / IDLE
        assert each <= IDLE_KIB, f"{each:.1f} KiB for an idle connection"


@pytest.mark.soak
async def test_clients_that_read_nothing_hold_little_and_no_more_with_time(tmp_path: Path) -> None:
    # Each stream is 50 MB, as fast as it is taken.
    flood = [Send(SSE_HEAD), *[Send(chunks(b"x" * 200_000))] * 250, Stall()]
    origin = Origin(flood)
    neuron = served_by(origin.url)
    async with origin.running(), neuron.running(), AsyncExitStack() as stack:
        config = gateway_config({"a": neuron.url})
        gateway = await stack.enter_async_context(daemon(tmp_path, "gateway", "serve", config))
        process = Process(gateway.pid, gateway.url)
        await process.wait_quiet()
        before = process.resident
        async with AsyncExitStack() as clients:
            for _ in range(STALLED):
                client = await clients.enter_async_context(
                    connected(address_of(gateway.url), receive_buffer=16384)
                )
                await client.send(post(ASKED_STREAM))
            await asyncio.sleep(5)  # for every buffer on the way to fill
            full = process.resident
            each = (full - before) / STALLED
            assert each <= STALLED_KIB, f"{each:.0f} KiB for a client that reads nothing"
            await asyncio.sleep(5)
            assert process.resident - full < 1024, "it grows while nobody reads"
        for peer in origin.peers:
            await peer.wait_gone()
        await process.wait_quiet()
