"""Many requests for one cold model, against the real gateway process and fake nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from tests.fakes import FakeNeuron
from tests.functional.processes import daemon, gateway_config
from tests.waiting import GUARD, until

CALLERS = 300
LOAD = "/models/load"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def test_300_requests_for_one_cold_model_on_two_nodes_are_one_load(tmp_path: Path) -> None:
    async with (
        FakeNeuron().running() as a,
        FakeNeuron().running() as b,
        daemon(
            tmp_path,
            "gateway",
            "serve",
            gateway_config({"a": a.url, "b": b.url}, {"id": "m"}),
        ) as gateway,
        aiohttp.ClientSession(
            gateway.url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=GUARD),
        ) as session,
    ):
        a.release.clear()
        b.release.clear()

        async def ask(number: int) -> tuple[int, str | None]:
            body = BODY | {"stream": number % 2 == 0}
            async with session.post("/v1/chat/completions", json=body) as answer:
                await answer.read()
                return answer.status, answer.headers.get("x-cortex-route")

        asking = [asyncio.create_task(ask(number)) for number in range(CALLERS)]
        # Before that they wait for the first polls, and not for a load.
        await until(lambda: bool(a.called("POST", LOAD) or b.called("POST", LOAD)))
        async with asyncio.timeout(GUARD):
            while (
                f'load_waiting{{model="m"}} {CALLERS}.0'
                not in await (await session.get("/metrics")).text()
            ):
                await asyncio.sleep(0.02)
        a.release.set()
        b.release.set()
        answers = await asyncio.gather(*asking)
        assert set(answers) == {(200, "cold")}
        loads = a.called("POST", LOAD) + b.called("POST", LOAD)
        assert len(loads) == 1


async def test_a_node_slow_to_answer_first_that_holds_the_model_is_served_without_a_load(
    tmp_path: Path,
) -> None:
    async with FakeNeuron({"m": "loaded"}).running() as slow, FakeNeuron().running() as quick:
        slow.answer_polls.clear()
        async with (
            daemon(
                tmp_path,
                "gateway",
                "serve",
                gateway_config({"slow": slow.url, "quick": quick.url}, {"id": "m"}),
            ) as gateway,
            aiohttp.ClientSession(gateway.url) as session,
        ):
            asking = asyncio.create_task(session.post("/v1/chat/completions", json=BODY))
            async with asyncio.timeout(GUARD):
                while (
                    'cortexd_load_waiting{model="m"} 1.0'
                    not in await (await session.get("/metrics")).text()
                ):
                    await asyncio.sleep(0.02)
            slow.answer_polls.set()
            answer = await asking
            assert answer.status == 200
            assert answer.headers["x-cortex-node"] == "slow"
            assert answer.headers["x-cortex-route"] == "loaded"
            answer.release()
        assert not slow.called("POST", LOAD)
        assert not quick.called("POST", "/models/load")
