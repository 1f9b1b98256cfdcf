"""The end of a gateway that serves: who is told what, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.units import Duration
from cortexd.gateway import shutdown
from tests.fakes import FakeNeuron
from tests.functional.raw import Client, connected, post
from tests.gateway.fleet import Fleet, running_fleet
from tests.waiting import until

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Endless(FakeNeuron):
    """Its streams go on for ever; its other answers never come."""

    def __init__(self) -> None:
        super().__init__({"m": "loaded"})
        self.infer = self._go_on

    async def _go_on(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        await asyncio.Event().wait()
        raise AssertionError


def patient(fleet: Fleet, seconds: float = 3600) -> None:
    """Let running answers have so long at the end."""
    config = fleet.gateway._current.config
    settings = msgspec.structs.replace(config.gateway, shutdown_timeout=Duration(seconds))
    fleet.gateway._current.config = msgspec.structs.replace(config, gateway=settings)


def asked(path: str = "/v1/chat/completions", **fields: Any) -> bytes:
    body = msgspec.json.encode({"model": "m", "messages": []} | fields)
    return post(body, "Content-Type: application/json", path=path)


async def begun(client: Client, path: str) -> None:
    """A stream of which the first event has come."""
    await client.send(asked(path, stream=True))
    await client.read_until(b"data: {}\n\n")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/chat/completions", b'data: {"error":{"message":"The gateway is shutting down'),
        ("/v1/messages", b"event: error\ndata: "),
        ("/v1/responses", b"event: response.failed\ndata: "),
    ],
)
async def test_a_stream_that_is_cut_is_told_so_in_its_dialect(path: str, words: bytes) -> None:
    async with running_fleet(a=Endless()) as fleet, connected(fleet.gateway.address) as client:
        patient(fleet, 0)
        await begun(client, path)
        await fleet.gateway.close()
        rest = await client.read_rest()
        assert words in rest
        assert b"shutting down" in rest
        # `response.failed` is an end that nobody takes for a whole answer.
        assert rest.endswith(b"0\r\n\r\n") == (path == "/v1/responses")
        assert client.ended == "eof"


async def test_an_answer_that_has_not_begun_is_refused_in_the_end() -> None:
    neuron = Endless()
    async with running_fleet(a=neuron) as fleet, connected(fleet.gateway.address) as client:
        patient(fleet, 0)
        await client.send(asked())
        await until(lambda: len(neuron.inference) == 1)
        await fleet.gateway.close()
        heard = await client.read_answer()
        assert (heard.status, heard.code, heard.is_last) == (503, "shutting_down", True)
        assert len(neuron.inference) == 1  # it is not tried again


async def test_it_is_not_ready_at_once_and_answers_say_that_they_are_the_last() -> None:
    async with (
        running_fleet(a=Endless()) as fleet,
        connected(fleet.gateway.address) as stream,
        connected(fleet.gateway.address) as client,
    ):
        patient(fleet)
        await begun(stream, "/v1/chat/completions")
        closing = asyncio.ensure_future(fleet.gateway.close())
        await asyncio.sleep(0)
        heard = await client.ask(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (heard.status, heard.is_last) == (503, True)
        async with connected(fleet.gateway.address) as late:
            heard = await late.ask(HEALTH)
            assert (heard.status, heard.is_last) == (200, True)
        fleet.gateway.hurry()
        await closing


async def test_whoever_waits_for_a_load_is_told_at_once() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with (
        running_fleet(Profile("m"), a=neuron) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        patient(fleet)
        await client.send(asked())
        await until(lambda: len(fleet.loads("a")) == 1)
        closing = asyncio.ensure_future(fleet.gateway.close())
        heard = await client.read_answer()
        assert (heard.status, heard.code, heard.is_last) == (503, "shutting_down", True)
        neuron.release.set()
        await closing


async def test_hurrying_waits_for_no_stream_but_tells_it() -> None:
    async with running_fleet(a=Endless()) as fleet, connected(fleet.gateway.address) as client:
        patient(fleet)
        await begun(client, "/v1/chat/completions")
        closing = asyncio.ensure_future(fleet.gateway.close())
        await until(lambda: not fleet.gateway.listeners.all[0]._acceptor.is_open)
        assert not closing.done()
        fleet.gateway.hurry()
        fleet.gateway.hurry()
        await closing
        assert b"shutting down" in await client.read_rest()


async def test_hurrying_from_the_start_gives_no_second_of_grace() -> None:
    async with running_fleet(a=Endless()) as fleet, connected(fleet.gateway.address) as client:
        patient(fleet)
        await begun(client, "/v1/chat/completions")
        fleet.gateway.hurry()
        await fleet.gateway.close()
        assert b"shutting down" in await client.read_rest()


async def test_a_client_that_takes_no_last_words_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "LAST", 0.1)

    async def flood(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"data: " + b"x" * 65536 + b"\n\n")

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = flood
    async with (
        running_fleet(a=neuron) as fleet,
        connected(fleet.gateway.address, receive_buffer=4096) as client,
    ):
        patient(fleet, 0)
        await client.send(asked(stream=True))
        server = fleet.gateway.listeners.all[0].server
        await until(lambda: any(door.writing_paused for door in server.doors))
        await fleet.gateway.close()
        assert not server.doors


async def test_who_has_heard_the_end_of_a_stream_may_ask_once_more() -> None:
    goes_on = asyncio.Event()

    async def stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        await goes_on.wait()
        return response

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = stream
    async with (
        running_fleet(a=neuron) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        patient(fleet)
        await client.send(asked(stream=True))
        so_far = await client.read_until(b"data: {}\n\n")
        closing = asyncio.ensure_future(fleet.gateway.close())
        await until(lambda: not fleet.gateway.listeners.all[0]._acceptor.is_open)
        goes_on.set()
        heard = await client.read_answer(so_far=so_far)
        assert (heard.status, heard.complete, heard.is_last) == (200, True, False)
        heard = await client.ask(HEALTH)
        assert (heard.status, heard.is_last) == (200, True)
        await closing
