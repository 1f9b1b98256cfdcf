"""A real gateway is restarted while requests and streams go through it, on a socket that somebody
else holds open: connections wait in the kernel for the next process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import tomlkit

from tests.functional.load import Talker, loaded
from tests.functional.processes import gateway_config
from tests.functional.socketed import Service, held_open, manager, service
from tests.waiting import GUARD


async def restarted_under_load(place: Path, times: int, rate: float, streams: int) -> None:
    neuron = Talker()
    file, log = place / "gateway.toml", place / "gateway.log"
    async with (
        AsyncExitStack() as stack,
        neuron.running(),
        manager(place) as systemd,
        held_open() as sock,
    ):
        config = gateway_config({"a": neuron.url})
        # Another process may be there already while this one ends, but not on a port of its own.
        config["gateway"] |= {"listen": "192.0.2.1:1", "admin_listen": "", "access_log": False}
        file.write_text(tomlkit.dumps(config))

        async def started() -> Service:
            handed = {"cortexd.socket": sock}
            process = service(file, log, handed, NOTIFY_SOCKET=systemd.path)
            running = await stack.enter_async_context(process)
            await systemd.hears("READY=1")
            return running

        running = await started()
        address = sock.getsockname()
        async with loaded(lambda: address, rate=rate, streams=streams) as load:
            for _ in range(times):
                running.process.terminate()
                assert await running.ended() == 0
                running = await started()
                before = load.answered, load.streamed
                async with asyncio.timeout(GUARD):
                    while load.answered < before[0] + rate or load.streamed == before[1]:
                        assert not load.failed
                        await asyncio.sleep(0.01)
        assert load.failed == []
        assert load.refused == 0
        running.process.terminate()
        assert await running.ended() == 0


async def test_a_restart_under_load_refuses_nobody_and_cuts_no_stream(tmp_path: Path) -> None:
    await restarted_under_load(tmp_path, times=1, rate=60, streams=10)


@pytest.mark.soak
async def test_restarts_under_200_requests_a_second_and_50_streams(tmp_path: Path) -> None:
    await restarted_under_load(tmp_path, times=5, rate=200, streams=50)
