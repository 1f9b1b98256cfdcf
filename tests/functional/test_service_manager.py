"""A real `cortexd serve` under something that does what a service manager does."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomlkit

from tests.fakes import FakeNeuron
from tests.functional.load import Talker
from tests.functional.processes import gateway_config
from tests.functional.raw import connected, post
from tests.functional.socketed import held_open, manager, service
from tests.waiting import until

STREAM = post(b'{"model":"m","messages":[],"stream":true}', "Content-Type: application/json")


def written(place: Path, config: dict[str, Any]) -> Path:
    file = place / "gateway.toml"
    file.write_text(tomlkit.dumps(config))
    return file


async def test_the_manager_hears_of_everything(tmp_path: Path) -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with neuron.running(), manager(tmp_path) as systemd:
        config = gateway_config({"a": neuron.url})
        file = written(tmp_path, config)
        async with service(
            file,
            tmp_path / "log",
            NOTIFY_SOCKET=systemd.path,
            WATCHDOG_USEC="100000",
            WATCHDOG_PID="self",
        ) as running:
            await systemd.hears("READY=1")
            await systemd.hears("WATCHDOG=1")
            await systemd.hears("STATUS=1 of 1 nodes up, 1 models, 0 in flight")
            await systemd.hears("WATCHDOG=1")

            running.process.send_signal(signal.SIGHUP)
            said = await systemd.hears("RELOADING=1")
            assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", said)
            await systemd.hears("READY=1")

            file.write_text(file.read_text() + "\n[gatway]\n")
            running.process.send_signal(signal.SIGHUP)
            await systemd.hears("RELOADING=1")
            await systemd.hears("READY=1")
            said = await systemd.hears("STATUS=")
            assert "not reloaded" in said
            assert "gatway" in said

            written(tmp_path, config)
            running.process.send_signal(signal.SIGHUP)
            said = await systemd.hears("STATUS=")
            assert said == "STATUS=1 of 1 nodes up, 1 models, 0 in flight"

            running.process.terminate()
            await systemd.hears("STOPPING=1")
            assert await running.ended() == 0
        statuses = [said for said in systemd.heard if said.startswith("STATUS=")]
        assert all(one != next_ for one, next_ in pairwise(statuses))


async def test_a_second_sigterm_hurries_and_the_stream_is_told(tmp_path: Path) -> None:
    neuron = Talker()
    async with neuron.running(), manager(tmp_path) as systemd, held_open() as sock:
        config = gateway_config({"a": neuron.url})
        config["gateway"]["shutdown_timeout"] = "1h"
        handed = {"cortexd.socket": sock}
        async with service(
            written(tmp_path, config), tmp_path / "log", handed, NOTIFY_SOCKET=systemd.path
        ) as running:
            await systemd.hears("READY=1")
            async with connected(sock.getsockname()) as client:
                await client.send(STREAM)
                await client.read_until(b"data: ")
                running.process.terminate()
                await systemd.hears("STOPPING=1")
                running.process.terminate()
                assert b"The gateway is shutting down" in await client.read_rest()
            assert await running.ended() == 0


async def test_sockets_are_told_apart_by_their_names(tmp_path: Path) -> None:
    async with manager(tmp_path) as systemd, held_open() as main:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.bind(f"{tmp_path}/admin.sock")
            admin.listen()
            config = gateway_config({})
            file = written(tmp_path, config)
            handed = {"cortexd.socket": main, "cortexd-admin.socket": admin}
            async with service(
                file, tmp_path / "log", handed, NOTIFY_SOCKET=systemd.path
            ) as running:
                await systemd.hears("READY=1")
                reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/admin.sock")
                writer.write(
                    post(b"", "Content-Type: application/json", path="/api/reload").replace(
                        b"Host: gateway", b"Host: localhost"
                    )
                )
                await reader.readuntil(b'{"status":"unchanged"')
                writer.close()
                await systemd.hears("RELOADING=1")
                await systemd.hears("READY=1")
                async with connected(main.getsockname()) as client:
                    heard = await client.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert heard.status == 200
                # What the manager decides is not ours to move.
                config["gateway"]["listen"] = "127.0.0.1:1"
                written(tmp_path, config)
                running.process.send_signal(signal.SIGHUP)
                await systemd.hears("RELOADING=1")
                await systemd.hears("READY=1")
                # Lines are written by a thread, soon after they were said.
                await until(lambda: "change ListenStream=" in running.log.read_text())
                running.process.terminate()
                assert await running.ended() == 0


async def test_what_is_no_listening_socket_ends_with_status_1(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        file = written(tmp_path, gateway_config({}))
        async with service(file, tmp_path / "log", {"cortexd.socket": datagrams}) as running:
            assert await running.ended() == 1
            assert "ListenStream=" in running.log.read_text()


async def test_a_file_that_is_bad_from_the_start_ends_with_status_78(tmp_path: Path) -> None:
    file = written(tmp_path, gateway_config({}) | {"gatway": {}})
    async with service(file, tmp_path / "log") as running:
        assert await running.ended() == 78
        assert "gatway" in running.log.read_text()
