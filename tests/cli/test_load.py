"""`cortexd load` and `cortexd unload` as processes, before a gateway in this one."""

from __future__ import annotations

import asyncio
import json
import os
import pty
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from tests.cli.commands import cortexd, start
from tests.fakes import FakeNeuron
from tests.gateway.fleet import GUARD, Fleet, running_fleet, until


def is_at(fleet: Fleet, stage: str) -> bool:
    entry = fleet.gateway.table.entry("m")
    return entry is not None and entry.stage == stage


async def move(fleet: Fleet, stage: str, fraction: float) -> None:
    """The load of `m` is that far, and the gateway has seen it."""
    progress = {"stage": stage, "fraction": fraction}
    fleet.neurons["a"].models["m"] = {"id": "m", "status": "loading", "progress": progress}
    await until(lambda: is_at(fleet, stage))


async def test_a_load_is_shown_in_lines_and_ends_with_where_it_is(tmp_path: Path) -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), aliases={"alias": "m"}, a=neuron) as fleet:
        running = asyncio.create_task(
            cortexd("load", "alias", "--url", fleet.admin_url, cwd=tmp_path)
        )
        await until(lambda: len(fleet.loads("a")) == 1)
        await move(fleet, "download", 0.25)
        await move(fleet, "weights", 0.5)
        neuron.release.set()
        status, out, err = await running
        assert status == 0
        assert out.startswith("loaded alias on a in ")
        lines = err.splitlines()
        assert lines[0] == "loading m on a"
        assert lines[1].startswith(" 25%  ██████░░░░")
        assert "weights  on a" in lines[2]
        assert "\r" not in err


async def test_on_a_terminal_it_is_one_line_that_is_redrawn(tmp_path: Path) -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        ours, theirs = pty.openpty()
        process = await start(
            "load", "m", "--json", "--url", fleet.admin_url, cwd=tmp_path, stderr=theirs
        )
        os.close(theirs)
        await until(lambda: len(fleet.loads("a")) == 1)
        await move(fleet, "weights", 0.5)
        seen = b""
        async with asyncio.timeout(GUARD):
            while b"50%" not in seen:
                seen += await asyncio.to_thread(os.read, ours, 1 << 16)
        neuron.release.set()
        out, _ = await process.communicate()
        with suppress(OSError):  # the other end is closed
            while more := await asyncio.to_thread(os.read, ours, 1 << 16):
                seen += more
        os.close(ours)
        assert process.returncode == 0
        answer = json.loads(out)
        assert (answer["status"], answer["node"]) == ("loaded", "a")
        assert b"\n" not in seen
        assert "\r\x1b[K 50%  ████████████░░░░░░░░░░░░  weights  on a  " in seen.decode()
        assert seen.endswith(b"\r\x1b[K")


async def test_a_refusal_is_the_nodes_words_and_status_1(tmp_path: Path) -> None:
    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "no space \x1b[31m left"}, status=500)

    first, second = FakeNeuron(), FakeNeuron()
    first.load_answer = second.load_answer = fail
    async with running_fleet(Profile("m"), a=first, b=second) as fleet:
        status, out, err = await cortexd("load", "m", "--url", fleet.admin_url, cwd=tmp_path)
        assert (status, out) == (1, "")
        lines = err.splitlines()
        assert [line.partition(":")[0] for line in lines[:3]] == (
            ["loading m on a", "a says", "loading m on b"]
        )
        assert lines[-1].startswith("The model 'm' could not be loaded: ")
        assert "no space" in lines[-1]
        assert "\x1b" not in err
        status, out, _ = await cortexd(
            "load", "nobody", "--json", "--url", fleet.admin_url, cwd=tmp_path
        )
        assert status == 1
        assert json.loads(out)["error"]["code"] == "model_not_found"


async def test_an_unload_says_from_where(tmp_path: Path) -> None:
    neurons = {name: FakeNeuron({"org/m": "loaded"}) for name in "ab"}
    async with running_fleet(**neurons) as fleet:
        ask = ("unload", "org/m", "--url", fleet.admin_url)
        assert (await cortexd(*ask, "--node", "b", cwd=tmp_path))[:2] == (
            (0, "unloaded org/m on b\n")
        )
        assert (await cortexd(*ask, "--force", cwd=tmp_path))[:2] == (0, "unloaded org/m on a\n")
        assert (await cortexd(*ask, cwd=tmp_path))[:2] == (0, "org/m was not loaded\n")
        status, _, err = await cortexd(*ask, "--node", "c", cwd=tmp_path)
        assert (status, err) == (1, "No node is called 'c'; there is a, b.\n")


@pytest.mark.parametrize("form", ["tcp", "unix"])
async def test_the_configuration_says_where_the_gateway_is(tmp_path: Path, form: str) -> None:
    listen = "127.0.0.1:0" if form == "tcp" else f"unix:{tmp_path}/admin.sock"
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), admin_listen=listen) as fleet:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/cortex.toml").write_text(
            f"[gateway]\nadmin_listen = '{fleet.gateway.admin_address}'\n"
        )
        status, out, _ = await cortexd("load", "m", cwd=tmp_path)
        assert (status, out) == (0, "loaded m on a already\n")


async def test_something_else_there_is_said_in_words(tmp_path: Path) -> None:
    async with FakeNeuron(token="x").running() as other:
        status, _, err = await cortexd("load", "m", "--url", other.url, cwd=tmp_path)
        assert status == 1
        assert "what is there answers 401, not like a gateway" in err


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8081", "ftp://x", "unix:x", "http://", "http://x:y", "http://x/y"]
)
async def test_a_url_that_is_none_is_a_usage_error(tmp_path: Path, url: str) -> None:
    status, _, err = await cortexd("unload", "m", "--url", url, cwd=tmp_path)
    assert status == 2
    assert "neither http://host:port nor unix:/path" in err
