"""`cortexd drain` and `cortexd undrain` as processes, before a gateway in this one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.cli.commands import cortexd
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet, until


async def test_a_node_goes_out_of_service_and_back(tmp_path: Path) -> None:
    async with running_fleet(state_dir=tmp_path, **{"a/1": FakeNeuron({"m": "loaded"})}) as fleet:
        where = ("a/1", "--url", fleet.admin_url)
        assert await cortexd("drain", *where, cwd=tmp_path) == (
            (0, "drained a/1: it gets no new work; nothing runs there\n", "")
        )
        assert (await fleet.ask()).status == 503
        assert await cortexd("undrain", *where, cwd=tmp_path) == (
            (0, "undrained a/1: it is in service\n", "")
        )
        assert (await fleet.ask()).status == 200


async def test_drain_that_a_restart_forgets_warns(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with running_fleet(a=FakeNeuron(), state_dir=tmp_path / "file/below") as fleet:
        for verb in ("drain", "undrain"):
            ask = (verb, "a", "--url", fleet.admin_url)
            status, out, _ = await cortexd(*ask, cwd=tmp_path)
            assert status == 0
            assert out.splitlines()[1].startswith("warning: A restart of the gateway forgets this:")


@pytest.mark.parametrize(
    ("requests", "words"), [(1, "1 request still runs there"), (2, "2 requests still run there")]
)
async def test_a_drain_says_what_still_runs(tmp_path: Path, requests: int, words: str) -> None:
    neuron, answering = FakeNeuron({"m": "loaded"}), asyncio.Event()
    infer = neuron.infer

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await answering.wait()
        return await infer(request, body)

    neuron.infer = slowly
    async with running_fleet(a=neuron) as fleet:
        asking = [asyncio.create_task(fleet.ask()) for _ in range(requests)]
        await until(lambda: len(neuron.inference) == requests)
        _, out, _ = await cortexd("drain", "a", "--url", fleet.admin_url, cwd=tmp_path)
        assert words in out
        answering.set()
        assert {(await it).status for it in asking} == {200}


@pytest.mark.parametrize("verb", ["drain", "undrain"])
async def test_a_node_that_is_not_there_is_status_1_in_words(tmp_path: Path, verb: str) -> None:
    async with running_fleet(a=FakeNeuron(), state_dir=tmp_path) as fleet:
        ask = (verb, "b", "--url", fleet.admin_url)
        assert await cortexd(*ask, cwd=tmp_path) == (
            (1, "", "No node is called 'b'; there is a.\n")
        )
        status, out, _ = await cortexd(*ask, "--json", cwd=tmp_path)
        assert (status, json.loads(out)["error"]["code"]) == (1, "unknown_node")
        ask = (verb, "a", "--json", "--url", fleet.admin_url)
        status, out, _ = await cortexd(*ask, cwd=tmp_path)
        assert json.loads(out) == {"node": "a", "draining": verb == "drain", "in_flight": 0}


async def test_a_node_is_not_drained_where_clients_are(tmp_path: Path) -> None:
    async with running_fleet(a=FakeNeuron(), state_dir=tmp_path) as fleet:
        status, _, err = await cortexd("drain", "a", "--url", fleet.url, cwd=tmp_path)
        assert status == 1
        assert "There is no POST /api/nodes/a/drain here" in err
