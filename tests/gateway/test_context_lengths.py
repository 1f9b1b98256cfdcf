"""Replicas of one model whose contexts differ."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading
from cortexd.config.units import Duration
from cortexd.wire.neuron import LOADED, UNLOADED
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, running_fleet
from tests.waiting import until

SMALL, LARGE = 1_000, 100_000
WORDS = "word " * 10_000  # 5,000 tokens at least
SHORT = "hi"


class Engine(FakeNeuron):
    """Refuses what its context can't hold, as llama.cpp does: a token for each word."""

    def __init__(self, context: int, stated: int | None = -1, status: str = LOADED) -> None:
        entry: dict[str, Any] = {"id": "m", "status": status}
        if stated is not None:
            entry["limit"] = {"context": context if stated == -1 else stated}
        super().__init__({"m": entry})
        self.context = context
        self._serve = self.infer
        self.infer = self._within

    async def _within(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        words = sum(len(message["content"].split()) for message in body["messages"])
        if words <= self.context:
            return await self._serve(request, body)
        error = {
            "code": 400,
            "message": "the request exceeds the available context size, try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": words,
            "n_ctx": self.context,
        }
        return web.json_response({"error": error}, status=400)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_long_prompt_is_never_sent_to_a_replica_that_can_not_hold_it() -> None:
    small, large = Engine(SMALL), Engine(LARGE)
    async with running_fleet(small=small, large=large) as fleet:
        for turn in range(12):
            answer = await fleet.ask(messages=asked(f"{turn} {WORDS}"))
            assert (answer.status, answer.headers["x-cortex-node"]) == (200, "large")
        assert not small.inference
        nodes = set()
        for turn in range(24):
            nodes.add((await fleet.ask(messages=asked(f"{turn}"))).headers["x-cortex-node"])
        assert nodes == {"small", "large"}  # short ones go to both


async def test_prompt_that_turns_out_too_long_goes_to_a_larger_replica_once() -> None:
    """The bound is low: 1,500 words may be less than 1,000 tokens."""
    small, large = Engine(SMALL), Engine(LARGE)
    async with running_fleet(small=small, large=large) as fleet:
        for turn in range(12):
            answer = await fleet.ask(messages=asked(f"{turn} " + "word " * 1_500))
            assert (answer.status, answer.headers["x-cortex-node"]) == (200, "large")
        assert 0 < len(small.inference) < 12
        retried = await fleet.metric("cortexd_upstream_retries_total", reason="context_overflow")
        assert retried == len(small.inference)


async def test_prompt_that_no_replica_holds_is_refused_by_the_largest() -> None:
    small, large = Engine(SMALL), Engine(2 * SMALL)
    async with running_fleet(small=small, large=large) as fleet:
        for turn in range(4):
            answer = await fleet.ask(messages=asked(f"{turn} {WORDS}"))
            assert (answer.status, answer.headers["x-cortex-node"]) == (400, "large")
            assert answer.json["error"]["n_ctx"] == 2 * SMALL
        assert (len(small.inference), len(large.inference)) == (0, 4)


@pytest.mark.parametrize("stated", [SMALL, None])
async def test_overflow_is_not_tried_on_replicas_that_are_no_larger(stated: int | None) -> None:
    one, two = Engine(SMALL, stated), Engine(SMALL, stated)
    async with running_fleet(one=one, two=two) as fleet:
        answer = await fleet.ask(messages=asked(WORDS))
        assert (answer.status, answer.json["error"]["n_ctx"]) == (400, SMALL)
        assert len(one.inference) + len(two.inference) == 1


async def test_overflow_is_tried_on_one_larger_replica_only() -> None:
    """Each says that it holds more than it does."""
    sizes = {"a": 10_000, "b": 20_000, "c": 40_000}
    engines = {name: Engine(SMALL, stated) for name, stated in sizes.items()}
    async with running_fleet(**engines) as fleet:
        for turn in range(6):
            answer = await fleet.ask(messages=asked(f"{turn} {WORDS}"))
            assert answer.status == 400
        assert 6 < sum(len(engine.inference) for engine in engines.values()) <= 12


async def test_replica_that_does_not_state_its_context_is_not_left_out() -> None:
    small, unstated = Engine(SMALL), Engine(LARGE, stated=None)
    async with running_fleet(small=small, unstated=unstated) as fleet:
        answer = await fleet.ask(messages=asked(WORDS))
        assert (answer.status, answer.headers["x-cortex-node"]) == (200, "unstated")


async def test_images_do_not_count() -> None:
    small, large = Engine(SMALL), Engine(LARGE)

    async def look(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({})

    small.infer = large.infer = look
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A " * 50_000}}
    async with running_fleet(small=small, large=large) as fleet:
        nodes = set()
        for turn in range(24):
            content = [{"type": "text", "text": f"what is that? {turn}"}, image]
            answer = await fleet.ask(messages=[{"role": "user", "content": content}])
            nodes.add(answer.headers["x-cortex-node"])
        assert nodes == {"small", "large"}


async def test_large_replica_that_fails_is_not_replaced_by_one_that_is_too_small() -> None:
    small, large = Engine(SMALL), Engine(LARGE)

    async def drop(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    large.infer = drop
    async with running_fleet(small=small, large=large) as fleet:
        answer = await fleet.ask(messages=asked(WORDS))
        assert (answer.status, answer.headers["x-cortex-code"]) == (502, "upstream_failed")
        assert not small.inference


async def test_stream_that_was_opened_while_waiting_goes_on_at_the_larger_replica() -> None:
    loading = Loading(timeout=Duration(60), keepalive=Duration(0.05))
    small, large = Engine(SMALL, status=UNLOADED), Engine(LARGE, status=UNLOADED)
    refuse, opened = small.infer, asyncio.Event()

    async def refuse_late(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await opened.wait()
        large.models["m"] = {"id": "m", "status": LOADED, "limit": {"context": LARGE}}
        nodes = fleet.gateway.registry
        await until(lambda: nodes.snapshot.nodes["large"].models["m"].status == LOADED)
        return await refuse(request, body)

    small.infer = refuse_late
    large.models["m"] = {"id": "m", "status": "failed", "error": "not yet"}
    async with (
        running_fleet(config=Config(polling=FAST, loading=loading), a=small, large=large) as fleet,
        fleet.client.post(
            f"{fleet.url}/v1/chat/completions",
            json={"model": "m", "messages": asked(WORDS), "stream": True},
        ) as response,
    ):
        assert response.status == 200
        opened.set()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
        assert len(large.inference) == 1


async def test_smallest_limit_of_all_replicas_is_listed() -> None:
    small, large = Engine(SMALL), Engine(LARGE)
    small.models["m"]["limit"] |= {"output": 500}
    large.models["m"]["limit"] |= {"input": 90_000, "output": 600}
    async with running_fleet(Profile(id="m"), large=large, small=small) as fleet:
        card = (await fleet.get("/v1/models/m")).json
        assert card["limit"] == {"context": SMALL, "input": 90_000, "output": 500}
        assert card["max_model_len"] == card["context_length"] == SMALL
