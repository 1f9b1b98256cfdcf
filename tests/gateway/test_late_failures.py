"""What goes wrong after the gateway has opened a stream by itself: an error event in the caller's
dialect, and nothing that looks like a whole answer."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading, Polling
from cortexd.config.units import Duration
from cortexd.daemon.access import AccessLog
from tests.fakes import FakeNeuron
from tests.functional.raw import Client, Heard, connected
from tests.gateway.dialects import (
    CHAT,
    MESSAGES,
    RESPONSES,
    Dialect,
    assert_ended_well,
    engine,
    in_every_dialect,
    infer,
)
from tests.gateway.fleet import Fleet, running_fleet, until
from tests.gateway.kept import a_sign_of_life

FAST = Polling(interval=Duration(0.05), timeout=Duration(2), unhealthy_after=2)
KEPT = Loading(keepalive=Duration(0.03))


class Caller:
    """One who hears signs of life, and then that it was all in vain."""

    def __init__(self, fleet: Fleet, client: Client, dialect: Dialect, log: io.StringIO) -> None:
        self.fleet = fleet
        self._client = client
        self._dialect = dialect
        self._log = log
        self._heard = b""

    async def hears_signs(self, count: int = 2) -> None:
        for _ in range(count):
            self._heard += await a_sign_of_life(self._client)

    async def refused(self, code: str, status: int, words: str = "") -> Heard:
        """Hear the end, hold it to what every end must be, and find it in the log."""
        return await self.refused_otherwise((code, status, words))

    async def refused_otherwise(self, *ways: tuple[str, int, str]) -> Heard:
        """In one of several ways: the code, the status as the log has it, words of the message."""
        dialect = self._dialect
        heard = await self._client.read_answer(so_far=self._heard)
        assert heard.status == 200
        _, event = dialect.split(heard.body)
        # OpenAI's helpers take no `response.failed` without a `response.created` before it.
        assert event.strip().count(b"\n\n") == (1 if dialect is RESPONSES else 0)
        for end in dialect.ends:
            assert end not in heard.body
        assert_ended_well(heard)
        assert heard.get("connection") == "keep-alive"
        await until(lambda: bool(self._log.getvalue()))
        [line] = map(json.loads, self._log.getvalue().splitlines())
        known = {code: (status, words) for code, status, words in ways}
        assert line["code"] in known
        status, words = known[line["code"]]
        assert words in event.decode()
        if dialect is MESSAGES:
            expected = "overloaded_error" if status == 503 else "api_error"
            assert (dialect.code(event), line["status"]) == (expected, _anthropic(status))
        else:
            assert (dialect.code(event), line["status"]) == (line["code"], status)
        return heard

    async def rejected(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the end. Return the engine's error in it, and the line of the log."""
        dialect = self._dialect
        heard = await self._client.read_answer(so_far=self._heard)
        assert_ended_well(heard)
        for end in dialect.ends:
            assert end not in heard.body
        _, event = dialect.split(heard.body)
        dialect.code(event)
        data = json.loads(event.rpartition(b"data: ")[2])
        await until(lambda: bool(self._log.getvalue()))
        [line] = map(json.loads, self._log.getvalue().splitlines())
        return (data["response"] if dialect is RESPONSES else data)["error"], line

    async def is_counted(self, code: str, status: int) -> None:
        metric = self.fleet.metric
        status = _anthropic(status) if self._dialect is MESSAGES else status
        path = self._dialect.path
        assert await metric("cortexd_refusals_total", code=code) == 1
        assert await metric("cortexd_requests_total", path=path, status=str(status)) == 1


def _anthropic(status: int) -> int:
    return 529 if status == 503 else status


@asynccontextmanager
async def kept(
    dialect: Dialect, loading: Loading = KEPT, **neurons: FakeNeuron
) -> AsyncIterator[Caller]:
    """Someone who asked for a stream of a model that is loading on the first of the neurons."""
    log = io.StringIO()
    async with (
        running_fleet(
            Profile("m"),
            config=Config(polling=FAST, loading=loading),
            access=AccessLog(log),
            **neurons,
        ) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        await client.send(dialect.request())
        caller = Caller(fleet, client, dialect, log)
        await caller.hears_signs()
        yield caller


def broken(words: str) -> FakeNeuron:
    """A node where every load fails, once it is let go."""
    neuron = engine()

    async def fail(body: dict[str, Any]) -> web.Response:
        await neuron.release.wait()
        return web.json_response({"error": words}, status=500)

    neuron.load_answer = fail
    return neuron


@in_every_dialect
async def test_a_load_that_failed_everywhere(dialect: Dialect) -> None:
    a, b = broken("no disk"), broken("no driver")
    async with kept(dialect, a=a, b=b) as caller:
        a.release.set()
        await caller.hears_signs()
        b.release.set()
        heard = await caller.refused("cold_load_failed", 502, "no disk")
        assert b"no driver" in heard.body
        await caller.is_counted("cold_load_failed", 502)
        # Nothing of it stands in the way of the next request on the connection.
        assert len(caller.fleet.gateway.table) == 0


@in_every_dialect
async def test_a_load_that_takes_too_long(dialect: Dialect) -> None:
    loading = Loading(keepalive=Duration(0.03), timeout=Duration(0.2))
    async with kept(dialect, loading, a=engine()) as caller:
        await caller.refused("model_loading", 503, "still loading")
        await caller.is_counted("model_loading", 503)


@in_every_dialect
async def test_a_shutdown(dialect: Dialect) -> None:
    async with kept(dialect, a=engine()) as caller:
        closing = asyncio.create_task(caller.fleet.gateway.close())
        await caller.refused("shutting_down", 503, "shutting down")
        await closing


@in_every_dialect
async def test_an_engine_that_can_not_be_reached(dialect: Dialect) -> None:
    neuron = engine()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    neuron.endpoint_answer = lambda _: web.json_response({"url": f"http://localhost:{nobody}"})
    async with kept(dialect, a=neuron) as caller:
        neuron.release.set()
        await caller.refused("upstream_failed", 502)
        await caller.is_counted("upstream_failed", 502)


@in_every_dialect
async def test_an_engine_that_dies_before_it_answers(dialect: Dialect) -> None:
    async def die(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    neuron = engine(answer=die)
    async with kept(dialect, a=neuron) as caller:
        neuron.release.set()
        await caller.refused("upstream_failed", 502)
        await caller.is_counted("upstream_failed", 502)


def refusing(status: int, body: bytes) -> FakeNeuron:
    """A node whose engine answers so, whatever it is asked."""

    async def refuse(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type="application/json")

    return engine(answer=refuse)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b'{"error": "CUDA error: out of memory"}', "CUDA error: out of memory"),
        (200, b'{"id": "not a stream"}', ""),
    ],
)
@in_every_dialect
async def test_an_engine_that_refuses(
    dialect: Dialect, status: int, body: bytes, words: str
) -> None:
    neuron = refusing(status, body)
    async with kept(dialect, a=neuron) as caller:
        neuron.release.set()
        await caller.refused("upstream_failed", 502, words)
        await caller.is_counted("upstream_failed", 502)
        assert len(neuron.inference) == 1


TOO_LONG = {
    "code": "context_length_exceeded",
    "message": "the prompt has 9000 tokens, the context 4096",
    "type": "exceed_context_size_error",
    "n_ctx": 4096,
}
# The body of an engine's 4xx, what is expected of it in OpenAI's envelope, and its message.
REJECTIONS = {
    "OpenAI's envelope": (
        400,
        {"error": TOO_LONG},
        {"code": "context_length_exceeded", "n_ctx": 4096},
        TOO_LONG["message"],
    ),
    "a number for a code": (400, {"error": TOO_LONG | {"code": 400}}, {"code": 400}, ""),
    "no envelope": (400, TOO_LONG | {"object": "error"}, {"param": None}, TOO_LONG["message"]),
    "a string": (404, {"error": "no such adapter"}, {"code": None}, "no such adapter"),
    "Anthropic's envelope": (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}},
        {},
        "no",
    ),
    "too many": (422, {"error": {"message": "x" * 9000}}, {}, "x" * 9000),
}


@pytest.mark.parametrize("name", REJECTIONS)
@in_every_dialect
async def test_engine_error_after_keep_alives_is_an_invalid_request(
    dialect: Dialect, name: str
) -> None:
    status, body, expected, message = REJECTIONS[name]
    neuron = refusing(status, json.dumps(body).encode())
    async with kept(dialect, a=neuron) as caller:
        neuron.release.set()
        error, line = await caller.rejected()
        assert (line["status"], line.get("code")) == (status, None)
        assert message in error["message"]
        if dialect is MESSAGES:
            kind = "not_found_error" if status == 404 else "invalid_request_error"
            assert error["type"] == kind
        else:
            assert error["type"] == "invalid_request_error"
        if dialect is RESPONSES and not isinstance(expected.get("code", ""), str):
            expected = expected | {"code": "invalid_prompt"}
        if dialect is not MESSAGES or expected.get("code"):
            assert error | expected == error
        metric = caller.fleet.metric
        assert await metric("cortexd_requests_total", status=str(status), path=dialect.path) == 1
        assert await metric("cortexd_refusals_total") == 0
        assert len(neuron.inference) == 1


async def test_engine_error_without_words_names_its_status() -> None:
    neuron = refusing(400, b"")
    async with kept(CHAT, a=neuron) as caller:
        neuron.release.set()
        error, _ = await caller.rejected()
        assert error["message"] == "The engine answered 400."


async def test_engine_error_that_is_an_event_stream_is_read_as_one() -> None:
    neuron = refusing(400, b'event: error\ndata: {"error": {"message": "too long"}}\n\n')
    async with kept(CHAT, a=neuron) as caller:
        neuron.release.set()
        error, _ = await caller.rejected()
        assert error["message"] == "too long"


async def test_engine_error_is_not_tried_on_another_node() -> None:
    a, b = (refusing(400, b'{"error": {"message": "the prompt is too long"}}') for _ in "ab")
    async with kept(CHAT, a=a, b=b) as caller:
        b.models["m"] = "loaded"
        a.release.set()
        error, _ = await caller.rejected()
        assert error["message"] == "the prompt is too long"
        assert len(a.inference) + len(b.inference) == 1
        assert not caller.fleet.loads("b")


@in_every_dialect
async def test_an_engine_that_is_full_for_a_while_serves_it_in_the_end(dialect: Dialect) -> None:
    full = iter([503, 429, 503])

    async def refuse_at_first(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if (status := next(full, None)) is not None:
            return web.json_response({"error": "no slot is free"}, status=status)
        return await infer(request, body)

    neuron = engine(answer=refuse_at_first)
    async with (
        running_fleet(Profile("m"), config=Config(polling=FAST, loading=KEPT), a=neuron) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        await client.send(dialect.request())
        so_far = await a_sign_of_life(client)
        neuron.release.set()
        heard = await client.read_answer(so_far=so_far)
        assert dialect.split(heard.body)[1] == dialect.answer
        assert_ended_well(heard)
        assert len(neuron.inference) == 4


@in_every_dialect
async def test_an_engine_that_stays_full_is_given_up_at_the_bound(dialect: Dialect) -> None:
    loading = Loading(keepalive=Duration(0.03), timeout=Duration(2))
    neuron = refusing(503, b'{"error": "no slot is free"}')
    async with kept(dialect, loading, a=neuron) as caller:
        neuron.release.set()
        # Whichever of the two sees the bound first: the line, or the last attempt.
        await caller.refused_otherwise(
            ("model_loading", 503, "still loading"), ("upstream_failed", 502, "no slot is free")
        )


@in_every_dialect
async def test_an_engine_that_breaks_off_after_its_first_byte_is_cut(dialect: Dialect) -> None:
    cut = dialect.answer.index(b"\n\n") + 22

    async def break_off(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(dialect.answer[:cut])
        assert request.transport is not None
        request.transport.abort()
        return response

    neuron = engine(answer=break_off)
    async with (
        running_fleet(Profile("m"), config=Config(polling=FAST, loading=KEPT), a=neuron) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        await client.send(dialect.request())
        so_far = await a_sign_of_life(client)
        neuron.release.set()
        heard = await client.read_answer(so_far=so_far)
        assert heard.complete == (dialect is RESPONSES)
        _, rest = dialect.split(heard.body)
        assert rest.startswith(dialect.answer[:cut])
        for end in dialect.ends:
            assert end not in heard.body
