"""A neuron that reports what can't be true, beside one that does not: only the first one loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.fakes import FakeNeuron
from tests.functional.processes import Daemon, daemon, gateway_config
from tests.gateway.fleet import total
from tests.waiting import until

EVIL = "\x1b]0;owned\x07\r\n\u202e"


class Neuron(FakeNeuron):
    """It can be waited for until the gateway has taken in what it was given to say."""

    async def wait_believed(self, polls: int = 3) -> None:
        enough = len(self.called("GET", "/models")) + polls
        await until(lambda: len(self.called("GET", "/models")) >= enough)


def reports(gateway: Daemon) -> list[str]:
    """What the gateway's log has said of nonsense."""
    events: list[Any] = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    return [event["msg"] for event in events if "nonsense" in event.get("msg", "")]


async def test_nodes_that_report_nonsense_cost_nobody_else_anything(tmp_path: Path) -> None:
    good, insane = Neuron({"m": "loaded"}), Neuron({"n": "loaded"})
    insane.discovery = {
        "hostname": EVIL,
        "devices": [
            {"index": 0, "vram_total_mb": 24000, "name": "x" * 10_000},
            {"index": 0, "vram_total_mb": 48000},
            {"index": 10**300, "vram_total_mb": -1},
        ],
    }
    async with good.running(), insane.running():
        config = gateway_config(
            {"good": good.url, "insane": insane.url},
            {"id": "cold", "vram_mb": 16000, "pinned_on": ["insane"]},
            polling={"interval": "20ms"},
        )
        async with (
            daemon(tmp_path, "gateway", "serve", config) as gateway,
            aiohttp.ClientSession(gateway.url) as client,
        ):

            async def read(path: str) -> str:
                async with client.get(path) as answer:
                    assert answer.status == 200
                    return await answer.text()

            async def serves(model: str) -> bool:
                async with client.post("/v1/chat/completions", json={"model": model}) as answer:
                    return answer.status == 200

            async def check() -> None:
                await insane.wait_believed()
                assert await serves("m")
                assert await serves("n")
                assert json.loads(await read("/health"))["status"] == "ok"
                listed = await read("/v1/models")
                assert {card["id"] for card in json.loads(listed)["data"]} >= {"m", "n", "cold"}
                metrics = await read("/metrics")
                assert total(metrics, "cortexd_node_up") == 2
                for text in (listed, metrics):
                    assert "\x1b" not in text
                    assert len(text) < 1_000_000

            await check()
            assert len(reports(gateway)) == 1

            insane.health = {
                "uptime_secs": -(10**300),
                "devices": [
                    {"index": 0, "vram_used_mb": -1, "vram_free_mb": 10**300, "temp_c": 1e308},
                    {"index": 0, "utilization_pct": 5e9},
                    {"index": -7},
                ],
                "models": [{"id": "n", "in_flight": -5}, {"id": "n"}, {"id": EVIL}],
                "activation": {
                    "state": "pre_warming",
                    "in_progress": EVIL,
                    "pending": ["", EVIL, "y" * 10_000],
                },
            }
            await check()
            assert len(reports(gateway)) == 2

            n = {"id": "n", "status": "loaded", "vram_used_mb": 10**300, "devices": [0, 0, 99]}
            insane.models = {
                "n": n | {"limit": {"context": -1}, "capabilities": [EVIL], "error": EVIL},
                "again": n | {"status": "unloaded"},
                "empty": {"id": "", "status": "loaded"},
                "evil": {"id": EVIL, "status": EVIL},
                "long": {"id": "x" * 10_000, "status": "loaded"},
            }
            await check()
            assert len(reports(gateway)) == 3

            # The same kinds of nonsense again, of others: nothing new for the log.
            insane.models = dict(reversed(insane.models.items())) | {
                "more": {"id": EVIL * 2, "status": "loaded"}
            }
            await check()
            assert len(reports(gateway)) == 3

            crowd = [{"id": f"m{i}", "status": "unloaded"} for i in range(20_000)]
            insane.raw["/models"] = msgspec.json.encode([*crowd, n])
            await check()
            assert len(reports(gateway)) == 4

            insane.raw["/health"] = b'{"uptime_secs": \xff'
            await check()
            assert len(reports(gateway)) == 5

            assert await serves("cold")  # its first device is as described: something fits there
            insane.raw["/models"] = b'[{"id": "\xff", "status": "loaded"}]'
            await insane.wait_believed(10)
            assert await serves("m")
            assert json.loads(await read("/health"))["status"] == "degraded"
            del insane.raw["/models"], insane.raw["/health"]
            insane.models, insane.health = {"n": "loaded"}, {}
            await check()

        log = gateway.log.read_text()
    assert log.isascii()
    assert log.replace("\n", "").isprintable()
    assert "traceback" not in log
    lines = [json.loads(line).get("msg", "") for line in log.splitlines()]
    assert all(len(line) < 3000 for line in lines)
    assert len([line for line in lines if "insane" in line]) <= 14, lines
