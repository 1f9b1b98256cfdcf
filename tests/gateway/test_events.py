"""GET /api/events as its clients see it."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.gateway import events
from tests.fakes import FakeNeuron
from tests.gateway.fleet import GUARD, Fleet, running_fleet, until


async def heard(response: aiohttp.ClientResponse) -> tuple[str, dict[str, Any]]:
    """The next event: its name, and its data."""
    name = ""
    async with asyncio.timeout(GUARD):
        while line := (await response.content.readline()).decode():
            if line.startswith("event: "):
                name = line[7:].strip()
            if line.startswith("data: "):
                return name, json.loads(line[6:])
    raise AssertionError("the stream has ended")


def listeners(fleet: Fleet) -> int:
    return len(fleet.gateway._events._listeners)


@pytest.mark.parametrize("face", ["url", "admin_url"])
async def test_a_load_is_told_from_its_start_to_its_end(face: str) -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with (
        running_fleet(Profile("m"), a=neuron) as fleet,
        fleet.client.get(f"{getattr(fleet, face)}/api/events") as response,
    ):
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-cache"
        asking = asyncio.create_task(fleet.ask())
        name, started = await heard(response)
        assert (name, started["event"]) == ("load_started", "load_started")
        assert (started["node"], started["model"]) == ("a", "m")
        progress = {"stage": "weights", "fraction": 0.5}
        neuron.models["m"] = {"id": "m", "status": "loading", "progress": progress}
        name, moved = await heard(response)
        assert (name, moved["stage"], moved["fraction"]) == ("load_progress", "weights", 0.5)
        neuron.release.set()
        name, ready = await heard(response)
        assert (name, ready["node"]) == ("load_ready", "a")
        assert ready["seconds"] >= 0
        assert (await asking).status == 200


async def test_a_failed_load_is_told_in_the_nodes_words() -> None:
    neuron = FakeNeuron()

    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "line 1\nline 2"}, status=500)

    neuron.load_answer = fail
    async with (
        running_fleet(Profile("m"), a=neuron) as fleet,
        fleet.client.get(f"{fleet.url}/api/events") as response,
    ):
        await fleet.ask()
        await heard(response)
        name, failed = await heard(response)
        assert name == "load_failed"
        assert "line 1 line 2" in failed["message"]


async def test_a_quiet_stream_says_that_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUIET", 0.01)
    async with (
        running_fleet() as fleet,
        fleet.client.get(f"{fleet.url}/api/events") as response,
    ):
        lines = [await response.content.readline() for _ in range(6)]
        assert lines == [b": cortexd\n", b"\n", b":\n", b"\n", b":\n", b"\n"]


async def test_a_client_that_leaves_is_forgotten() -> None:
    async with running_fleet() as fleet:
        async with fleet.client.get(f"{fleet.url}/api/events"):
            assert listeners(fleet) == 1
        await until(lambda: listeners(fleet) == 0)


async def test_the_stream_ends_whole_when_the_gateway_stops() -> None:
    async with (
        running_fleet() as fleet,
        fleet.client.get(f"{fleet.url}/api/events") as response,
    ):
        assert response.headers["Connection"] == "close"
        closing = asyncio.create_task(fleet.gateway.close())
        assert await response.read() == b": cortexd\n\n"
        await closing


async def test_a_listener_that_takes_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LAST", 0.01)
    async with running_fleet() as fleet:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, fleet.gateway.address)
            client.send(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: listeners(fleet) == 1)
            while listeners(fleet):
                fleet.gateway._events.tell("load_failed", model="m", message="x" * 4000)
                await asyncio.sleep(0)
            await until(lambda: not any(it.server.doors for it in fleet.gateway.listeners.all))


async def test_events_are_only_for_get() -> None:
    async with (
        running_fleet() as fleet,
        fleet.client.head(f"{fleet.url}/api/events") as response,
    ):
        assert response.status == 405
