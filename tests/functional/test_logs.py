"""What a gateway says, and that nobody has to listen: real processes, real pipes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tomlkit

from tests.functional.processes import daemon, gateway_config, is_alive
from tests.waiting import GUARD, eventually

ROOT = Path(__file__).parents[2]
CANARY = "canary-7f3a"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@asynccontextmanager
async def gateway(place: Path, stderr: int, *options: str, **sections: Any) -> AsyncIterator[str]:
    """A gateway without nodes whose stderr is that descriptor, once it answers: its URL."""
    port = free_port()
    config = gateway_config({}, **sections)
    config["gateway"] |= {"listen": f"127.0.0.1:{port}", "admin_listen": ""}
    file = place / "cortex.toml"
    file.write_text(tomlkit.dumps(config))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cortexd", "serve", "--config", str(file), *options),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=stderr,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(GUARD), aiohttp.ClientSession(url) as session:
            while True:
                assert is_alive(process.pid)
                try:
                    async with session.get("/health"):
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
        yield url
        process.terminate()
        async with asyncio.timeout(GUARD):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ask(url: str, times: int) -> list[int]:
    """The statuses of as many requests for a model that is not there."""
    body = {"model": "m", "messages": [{"role": "user", "content": CANARY}]}
    headers = {"Authorization": f"Bearer {CANARY}", "x-api-key": CANARY}
    target = f"/v1/chat/completions?key={CANARY}"
    statuses = []
    async with asyncio.timeout(GUARD), aiohttp.ClientSession(url) as session:
        for _ in range(times):
            async with session.post(target, json=body, headers=headers) as answer:
                await answer.read()
                statuses.append(answer.status)
    return statuses


async def test_a_pipe_that_nobody_reads_harms_nothing(tmp_path: Path) -> None:
    out, into = os.pipe()
    os.set_blocking(into, False)
    try:
        while True:  # full before the first line
            os.write(into, b"x" * 65536)
    except BlockingIOError:
        os.set_blocking(into, True)
    try:
        async with gateway(tmp_path, into) as url:
            assert set(await ask(url, 500)) == {422}
    finally:
        os.close(out)
        os.close(into)


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_full_disk_harms_nothing(tmp_path: Path, form: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with gateway(tmp_path, full, "--log-format", form) as url:
            assert set(await ask(url, 200)) == {422}
    finally:
        os.close(full)


@pytest.mark.parametrize("form", ["text", "json"])
async def test_one_line_for_each_event_and_never_what_is_nobodys_business(
    tmp_path: Path, form: str
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        async with gateway(
            tmp_path, stderr.fileno(), "--log-level", "debug", logging={"format": form}
        ) as url:
            await ask(url, 3)
    text = log.read_text()
    assert CANARY not in text
    requests = [line for line in text.splitlines() if "/v1/chat/completions" in line]
    assert len(requests) == 3
    if form == "text":
        assert re.search(r" 422 m - \d\.\d{3}s /v1/chat/completions request_id=", requests[0])
        assert "client=127.0.0.1" in requests[0]
        return
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"ts", "level", "logger"} <= line.keys() for line in lines)
    entry = json.loads(requests[0])
    assert (entry["logger"], entry["status"], entry["model"]) == ("cortexd.access", 422, "m")
    assert (entry["client"], entry["code"]) == ("127.0.0.1", "no_feasible_neuron")
    assert {"request_id", "duration_s"} <= entry.keys()
    assert "stopping: SIGTERM" in text


async def test_the_levels_above_are_quiet(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        async with gateway(tmp_path, stderr.fileno(), logging={"level": "error"}) as url:
            await ask(url, 1)
    assert log.read_text() == ""


@pytest.mark.parametrize(("host", "count"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
async def test_a_listener_beyond_loopback_is_warned_about_at_the_start(
    tmp_path: Path, host: str, count: int
) -> None:
    config = gateway_config({}, logging={"format": "json"})
    config["gateway"]["listen"] = f"{host}:0"
    async with daemon(tmp_path, "cortex", "serve", config) as serving:
        await eventually(lambda: answers(serving.address[1]))
    lines = [json.loads(line) for line in serving.log.read_text().splitlines()]
    warnings = [line["msg"] for line in lines if "can use every model" in line["msg"]]
    assert len(warnings) == count
    for warning in warnings:
        assert warning.startswith(f"gateway.listen: anyone who can reach {host}:")


async def test_a_neuron_starts_without_its_directories_and_says_so(tmp_path: Path) -> None:
    config = {
        "neuron": {"listen": "127.0.0.1:0"},
        "paths": {"models": ["nowhere"], "logs": "logs"},
        "models": [{"id": "m", "path": "m.gguf"}],
    }
    async with daemon(tmp_path, "neuron", "neuron", config) as serving:
        text = serving.log.read_text()
    assert f"paths.models[0]: there is no directory {tmp_path}/nowhere" in text
    assert f"models[0].path: there is no file {tmp_path}/nowhere/m.gguf" in text


async def answers(port: int) -> bool:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/health") as answer,
    ):
        return answer.status == 200


@pytest.mark.parametrize("form", ["auto", "json"])
async def test_a_service_logs_text_with_priorities_unless_json_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        found = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        async with gateway(tmp_path, stderr.fileno(), logging={"format": form}) as url:
            await ask(url, 1)
    lines = log.read_text().splitlines()
    if form == "json":
        assert all(json.loads(line) for line in lines)
    else:
        assert all(re.match(r"<[2-7]>\S", line) for line in lines)
        assert any(re.match(r"<6>422 m - \d\.\d{3}s /v1/chat", line) for line in lines)
