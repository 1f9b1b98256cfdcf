"""Models are placed by the files that real neurons tell of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling
from cortexd.config.neuron import Paths
from cortexd.config.units import Duration
from cortexd.neuron.app import Neuron
from tests.gateway.fleet import Fleet, running_fleet
from tests.neuron.engines import FakeHarness, running_neuron
from tests.waiting import eventually, until


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"object": "chat.completion", "choices": []})


class RealNeuron:
    """A neuron with those files, as `running_fleet` takes its nodes."""

    def __init__(self, directory: Path, *files: str) -> None:
        directory.mkdir()
        self.directory = directory
        for file in files:
            self.add(file)
        self.neuron: Neuron | None = None

    def add(self, file: str) -> None:
        (self.directory / file).touch()

    @property
    def url(self) -> str:
        assert self.neuron is not None
        return self.neuron.url

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        harness, paths = FakeHarness(serve=hello), Paths(models=(str(self.directory),))
        async with running_neuron(harness=harness, paths=paths) as (self.neuron, _):
            yield


async def test_a_model_is_loaded_where_its_file_is_and_refused_where_none_has_it(
    tmp_path: Path,
) -> None:
    nodes: Any = {
        "north": RealNeuron(tmp_path / "north", "other.gguf"),
        "south": RealNeuron(tmp_path / "south", "org-m.gguf", "m-Q4_0.gguf"),
    }
    profiles = (
        Profile("m", harness="fake", source="hf"),
        Profile("m8", harness="fake"),
        Profile("other", harness="fake", quant="Q8_0"),
    )
    async with running_fleet(*profiles, **nodes) as fleet:
        served = await fleet.ask("m")
        assert (served.status, served.headers["x-cortex-node"]) == (200, "south")
        refused = await fleet.ask("m8")
        assert refused.status == 422
        message = refused.json["error"]["message"]
        assert "north: has no file for 'm8'; south: has no file for 'm8'" in message
        assert "other.gguf" not in message
        refused = await fleet.ask("other")
        assert (
            "north: has no file for 'other' with quant 'Q8_0', only one without a quant"
            in (refused.json["error"]["message"])
        )
        # A file that is put there is noticed without a restart.
        nodes["north"].add("m8.gguf")
        await nodes["north"].neuron._files.refresh()

        async def is_served() -> bool:
            return (await fleet.ask("m8")).status == 200

        await eventually(is_served)
        # A down node that has it is named.
        await nodes["south"].neuron.close()
        await until(lambda: not fleet.gateway.registry.snapshot.nodes["south"].healthy)
        refused = await fleet.ask("m")
        assert (refused.status, refused.headers["x-cortex-code"]) == (
            503,
            "feasible_node_unhealthy",
        )
        assert "only available on south, which is unhealthy" in refused.json["error"]["message"]


async def is_polled(fleet: Fleet, node: str) -> bool:
    """Poll a node now; return whether the gateway's own word on it is gone."""
    fleet.gateway._poller.nudge(node)
    await asyncio.sleep(0.01)
    return not fleet.gateway.registry.snapshot.nodes[node].told


async def test_model_that_was_unloaded_on_its_node_is_loaded_again(tmp_path: Path) -> None:
    """It was unloaded by another caller, between two polls."""
    node: Any = RealNeuron(tmp_path / "north", "m.gguf")
    rarely = Polling(interval=Duration(3600), timeout=Duration(10))
    async with running_fleet(
        Profile("m", harness="fake"), config=Config(polling=rarely), north=node
    ) as fleet:
        for path in ("/v1/chat/completions", "/v1/messages"):
            assert (await fleet.ask(path=path)).status == 200
            await eventually(lambda: is_polled(fleet, "north"))  # after the load
            assert (await fleet.ask(path=path)).status == 200
            async with fleet.client.post(
                f"{node.url}/models/unload", json={"model_id": "m"}
            ) as unloaded:
                assert unloaded.status == 200
            answer = await fleet.ask(path=path)
            assert (answer.status, answer.headers["x-cortex-route"]) == (200, "cold")
        retried = await fleet.metric("cortexd_upstream_retries_total", reason="model_missing")
        assert retried == 2
