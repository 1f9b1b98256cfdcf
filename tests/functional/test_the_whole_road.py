"""A real model answers through real processes: client → gateway → neuron → llama.cpp and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.functional.processes import (
    Daemon,
    children,
    daemon,
    gateway_config,
    is_alive,
    neuron_config,
)
from tests.gateway.fleet import total
from tests.neuron.engines import smollm2
from tests.waiting import GUARD

COLOURS = [{"role": "user", "content": "Name three colours."}]


class House:
    def __init__(self, gateway: Daemon, north: Daemon, south: Daemon) -> None:
        self.gateway, self.north, self.south = gateway, north, south
        self.client = openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=GUARD
        )

    async def metric(self, name: str, **labels: str) -> float:
        async with aiohttp.ClientSession(self.gateway.url) as session:
            return total(await (await session.get("/metrics")).text(), name, **labels)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Two neurons on addresses of their own, as two hosts would be, and the gateway."""
    known = {"id": "known", "path": str(smollm2()), "context": 2048}
    (tmp_path / "n").mkdir()
    (tmp_path / "s").mkdir()
    async with (
        daemon(
            tmp_path, "north", "neuron", neuron_config(tmp_path / "n", host="127.0.0.2")
        ) as north,
        daemon(
            tmp_path, "south", "neuron", neuron_config(tmp_path / "s", known, host="127.0.0.3")
        ) as south,
        daemon(
            tmp_path,
            "gateway",
            "serve",
            gateway_config(
                {"north": north.url, "south": south.url},
                {"id": "smollm2-135m"},
                aliases={"small": "smollm2-135m"},
            ),
        ) as gateway,
    ):
        house = House(gateway, north, south)
        try:
            yield house
        finally:
            await house.client.close()


async def test_the_official_sdk_walks_the_whole_road(house: House) -> None:
    """Cold, loaded, lazy, alias, completions, embeddings' refusal, the list, and the metrics."""
    chat = house.client.chat.completions
    cold = await chat.with_raw_response.create(
        model="smollm2-135m",
        messages=COLOURS,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert cold.headers["x-cortex-route"] == "cold"
    assert cold.headers["x-cortex-cold-start"] == "true"
    assert cold.headers["x-cortex-node"] == "north"
    chunks = [chunk async for chunk in cold.parse()]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.strip()
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens > 0

    loaded = await chat.with_raw_response.create(model="small", messages=COLOURS, max_tokens=8)
    assert loaded.headers["x-cortex-route"] == "loaded"
    assert loaded.headers["x-cortex-model"] == "smollm2-135m"
    answer = loaded.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None

    lazy = await house.client.completions.with_raw_response.create(
        model="known", prompt="The sky is", max_tokens=8
    )
    assert lazy.headers["x-cortex-route"] == "lazy"
    assert lazy.headers["x-cortex-node"] == "south"
    assert lazy.parse().choices[0].text

    models = {model.id: model async for model in await house.client.models.list()}
    assert set(models) == {"smollm2-135m", "known", "small"}
    assert models["smollm2-135m"].model_extra["loaded"] is True  # type: ignore[index]

    with pytest.raises(openai.NotFoundError) as missing:
        await chat.create(model="nobody", messages=COLOURS)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await chat.create(model="known", messages=COLOURS, stream="yes")  # type: ignore[call-overload]

    assert await house.metric("cortexd_cold_starts_total", kind="cold") == 1
    assert await house.metric("cortexd_cold_starts_total", kind="lazy") == 1
    assert await house.metric("cortexd_loads_total", result="ok") == 1
    assert (
        await house.metric("cortexd_completion_tokens_total", model="smollm2-135m")
        == usage.completion_tokens + answer.usage.completion_tokens
    )
    assert (
        await house.metric("cortexd_prompt_tokens_total", model="smollm2-135m")
        == usage.prompt_tokens + answer.usage.prompt_tokens
    )
    assert await house.metric("cortexd_usage_missing_total") == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_the_other_faces_reach_the_engine(house: House, stream: bool) -> None:
    """Anthropic messages and Responses are the sample engine's own; their tokens count too."""
    async with aiohttp.ClientSession(house.gateway.url) as session:
        body = {"model": "known", "max_tokens": 8, "messages": COLOURS, "stream": stream}
        async with session.post("/v1/messages", json=body) as answer:
            text = await answer.text()
            assert answer.status == 200, text
            assert answer.headers["request-id"]
            assert "message_stop" in text if stream else '"type":"message"' in text
        async with session.post(
            "/v1/responses", json={"model": "known", "input": "Hi", "stream": stream}
        ) as answer:
            text = await answer.text()
            assert answer.status == 200, text
            assert "response.completed" in text if stream else '"output"' in text
        async with session.post("/v1/messages/count_tokens", json=body) as answer:
            assert (await answer.json())["input_tokens"] > 0
    assert await house.metric("cortexd_usage_missing_total") == 0
    assert await house.metric("cortexd_completion_tokens_total", model="known") > 8


async def test_a_client_that_leaves_makes_the_engine_stop(house: House) -> None:
    async with aiohttp.ClientSession(house.gateway.url) as session:
        body = {"model": "smollm2-135m", "messages": COLOURS, "stream": True, "max_tokens": 4000}
        answer = await session.post(
            "/v1/chat/completions", json=body | {"ignore_eos": True, "temperature": 0}
        )
        await answer.content.readany()
        answer.close()

        async def in_flight() -> int:
            async with aiohttp.ClientSession(house.north.url) as node:
                health = await (await node.get("/health")).json()
                return sum(model["in_flight"] for model in health["models"])

        async with asyncio.timeout(GUARD):
            while await in_flight():
                await asyncio.sleep(0.02)
        # The engine is free at once: a fresh answer is not queued behind the abandoned one.
        fresh = await house.client.chat.completions.create(
            model="smollm2-135m", messages=COLOURS, max_tokens=1
        )
        assert fresh.usage is not None
    assert await house.metric("cortexd_requests_total", status="499") == 1


async def test_sigterm_ends_everything_with_status_0(house: House) -> None:
    await house.client.completions.create(model="known", prompt="Hi", max_tokens=1)
    engines = children(house.south.pid)
    assert engines
    assert await house.gateway.stop() == 0
    assert await house.south.stop() == 0
    assert not [pid for pid in engines if is_alive(pid)]


async def test_a_killed_neuron_leaves_no_engine_and_the_gateway_says_who_is_missing(
    house: House,
) -> None:
    await house.client.completions.create(model="known", prompt="Hi", max_tokens=1)
    engines = children(house.south.pid)
    assert engines
    await house.south.kill()
    async with asyncio.timeout(GUARD):
        while any(is_alive(pid) for pid in engines):
            await asyncio.sleep(0.02)
        while True:
            try:
                await house.client.completions.create(model="known", prompt="Hi", max_tokens=1)
            except openai.InternalServerError as error:
                assert error.status_code in {502, 503}
                if error.code == "feasible_node_unhealthy":
                    assert "south" in str(error)
                    break
                assert error.code in {"upstream_failed", "endpoint_resolve_failed"}
    # The other node serves on.
    answer = await house.client.completions.create(model="smollm2-135m", prompt="Hi", max_tokens=1)
    assert answer.choices
