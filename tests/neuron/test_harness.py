"""What every harness must do, asked of the real one and of the one that tests stand on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from cortexd.config.neuron import LocalModel
from cortexd.neuron.harness import Harness, Launch
from cortexd.neuron.harnesses.llamacpp import LlamaCpp
from tests.neuron.engines import FakeHarness, smollm2
from tests.waiting import GUARD


async def anything(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


@pytest.fixture(params=["fake", "llamacpp"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    if request.param == "fake":
        return FakeHarness(serve=anything)
    return LlamaCpp(tmp_path)


@pytest.fixture
def launch() -> Launch:
    return Launch(
        LocalModel("a/b", str(smollm2()), context=256, args={"cpuparams.n_threads": 1}), smollm2()
    )


async def test_an_engine_answers_when_it_is_ready_and_is_gone_when_it_is_stopped(
    harness: Harness, launch: Launch
) -> None:
    async with asyncio.timeout(GUARD):
        assert await harness.gpus() is not None
        assert harness.capabilities(launch.model) == ["text"]
        assert await asyncio.to_thread(harness.estimate_mb, launch) > 0
        engine = await harness.start(launch)
        await engine.wait_ready()
        assert engine.memory_mb() > 0
        async with (
            aiohttp.ClientSession(headers=engine.headers) as session,
            session.get(f"{engine.url}/health") as answer,
        ):
            assert answer.status == 200
        await engine.stop()
        assert await engine.wait_exit() < 0
        assert engine.memory_mb() == 0
        await engine.stop()


async def test_a_load_can_be_stopped_in_the_middle(harness: Harness, launch: Launch) -> None:
    async with asyncio.timeout(GUARD):
        engine = await harness.start(launch)
        await engine.stop()
        await engine.wait_exit()
        assert engine.memory_mb() == 0
