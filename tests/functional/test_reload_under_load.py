"""A real gateway is told to reload, again and again, while requests and streams go through it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tomlkit

from tests.functional.load import Talker, loaded
from tests.functional.processes import Daemon, daemon, gateway_config
from tests.gateway.fleet import total
from tests.waiting import GUARD, eventually


def configuration(round_: int, a: Talker, b: Talker) -> dict[str, Any]:
    """Another one every time: a node comes and goes, and so do models, aliases and settings."""
    nodes = {"a": a.url} | ({"b": b.url} if round_ % 2 == 0 else {})
    config = gateway_config(
        nodes,
        {"id": f"of-round-{round_}"},
        loading={"keepalive": f"{5 + round_}s"},
        routing={"affinity": "prefix" if round_ % 3 else "none"},
        aliases={f"alias-{round_}": "m"},
    )
    config["gateway"]["access_log"] = False
    return config


async def asked(gateway: Daemon, path: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(gateway.url + path) as answer:
        return await answer.read()


def reloads(gateway: Daemon) -> int:
    """How many it has said that it has made, well or not."""
    said = gateway.log.read_text()
    return said.count('"reloaded: ') + said.count("not reloaded: ")


async def hung_up(gateway: Daemon) -> None:
    """SIGHUP, and wait until that has been done."""
    before = reloads(gateway)
    gateway.process.send_signal(signal.SIGHUP)

    async def has_reloaded() -> bool:
        return reloads(gateway) > before

    await eventually(has_reloaded)


async def reloaded_under_load(place: Path, times: int, rate: float, streams: int) -> None:
    a, b = Talker(), Talker()
    file = place / "gateway.toml"
    async with (
        a.running(),
        b.running(),
        daemon(place, "gateway", "serve", configuration(0, a, b)) as gateway,
        loaded(lambda: gateway.address, rate=rate, streams=streams) as load,
    ):
        for round_ in range(1, times + 1):
            good = tomlkit.dumps(configuration(round_, a, b))
            if round_ % 4 == 3:
                file.write_text(good + '\n[polling.interval]\nfast = "yes"\n')
                await hung_up(gateway)
                assert b"impaired" in await asked(gateway, "/health")
                exposition = (await asked(gateway, "/metrics")).decode()
                assert total(exposition, "cortexd_config_last_reload_success") == 0
                models = await asked(gateway, "/v1/models")
                assert f"of-round-{round_ - 1}".encode() in models
            file.write_text(good)
            await hung_up(gateway)
            assert b"impaired" not in await asked(gateway, "/health")
            models = await asked(gateway, "/v1/models")
            assert f'"of-round-{round_}"'.encode() in models
            assert f'"of-round-{round_ - 1}"'.encode() not in models
            before = load.answered, load.streamed
            async with asyncio.timeout(GUARD):
                while load.answered < before[0] + rate / 2 or load.streamed == before[1]:
                    assert not load.failed
                    await asyncio.sleep(0.01)
    assert load.failed == []
    assert (load.refused, load.told) == (0, 0)
    assert b.inference


async def test_reloads_under_load_fail_no_request_and_cut_no_stream(tmp_path: Path) -> None:
    await reloaded_under_load(tmp_path, times=4, rate=60, streams=10)


@pytest.mark.soak
async def test_twenty_reloads_under_200_requests_a_second_and_50_streams(tmp_path: Path) -> None:
    await reloaded_under_load(tmp_path, times=20, rate=200, streams=50)
