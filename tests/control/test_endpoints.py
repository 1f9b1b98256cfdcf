from __future__ import annotations

import asyncio
import socket
from typing import Any

from aiohttp import web

from cortexd.config.gateway import Config, Security
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, running_fleet
from tests.gateway.reloading import neurons, reloaded
from tests.waiting import until


async def test_simultaneous_requests_share_one_question() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with running_fleet(a=neuron) as fleet:
        answers = await asyncio.gather(*(fleet.ask() for _ in range(30)))
        assert {answer.status for answer in answers} == {200}
        assert len(neuron.called("GET", "/models/m/endpoint")) == 1


async def test_a_change_of_status_makes_the_gateway_ask_anew() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with running_fleet(a=neuron) as fleet:
        await fleet.ask()
        neuron.models["m"] = "reloading"
        await until(lambda: fleet.gateway.registry.snapshot.replicas["m"][0].status == "reloading")
        await fleet.ask()
        assert len(neuron.called("GET", "/models/m/endpoint")) == 2


async def test_a_restart_of_the_node_makes_the_gateway_ask_anew() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.started -= 1000
    async with running_fleet(a=neuron) as fleet:
        await fleet.ask()
        neuron.started += 1000
        await until(lambda: fleet.gateway.registry.snapshot.nodes["a"].epoch == 1)
        await fleet.ask()
        assert len(neuron.called("GET", "/models/m/endpoint")) == 2


class HeldEndpoint(FakeNeuron):
    """Says where it serves only once `goes_on` is set."""

    def __init__(self, models: dict[str, Any]) -> None:
        super().__init__(models)
        self.goes_on = asyncio.Event()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        answer = await super()._handle(request)
        if request.path.endswith("/endpoint"):
            await self.goes_on.wait()
        return answer


async def test_another_node_of_the_name_is_asked_itself_while_its_predecessor_is_asked() -> None:
    old, new = HeldEndpoint({"m": "loaded"}), FakeNeuron({"m": "loaded"})
    async with running_fleet(a=old) as fleet, new.running():
        first = asyncio.ensure_future(fleet.ask())
        await until(lambda: len(old.called("GET", "/models/m/endpoint")) == 1)
        await reloaded(fleet, neurons=neurons(a=new))
        assert (await fleet.ask()).status == 200
        assert (len(old.inference), len(new.inference)) == (0, 1)
        old.goes_on.set()
        await first


async def test_rule_that_a_reload_changes_holds_for_a_node_that_is_being_asked() -> None:
    neuron = HeldEndpoint({"m": "loaded"})
    neuron.endpoint_answer = lambda _: web.json_response({"url": "http://192.0.2.1:1"})
    config = Config(polling=FAST, security=Security(("192.0.2.1",)))
    async with running_fleet(config=config, a=neuron) as fleet:
        first = asyncio.ensure_future(fleet.ask())
        await until(lambda: len(neuron.called("GET", "/models/m/endpoint")) == 1)
        await reloaded(fleet, security=Security())
        neuron.goes_on.set()
        assert (await first).headers["x-cortex-code"] == "endpoint_refused"


async def test_an_endpoint_with_a_path_is_a_base() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.endpoint_answer = lambda _: web.json_response(
        {"url": f"http://0.0.0.0:{neuron.port}/engine/"}
    )
    async with running_fleet(a=neuron) as fleet:
        assert (await fleet.ask()).status == 200
        assert neuron.calls[-1][1] == "/engine/v1/chat/completions"


async def test_refused_connection_to_another_port_names_both_ports() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        neuron.endpoint_answer = lambda _: web.json_response({"url": f"http://localhost:{port}"})
        async with running_fleet(a=neuron) as fleet:
            answer = await fleet.ask()
            assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_failed")
            message = answer.json["error"]["message"]
            assert f"names port {port} for inference" in message
            assert f"its configured endpoint has port {neuron.port}" in message
            assert message.endswith(f"map port {port}, too.")


async def test_a_replica_without_a_usable_endpoint_is_passed_over() -> None:
    odd = FakeNeuron({"m": "loaded"})
    odd.endpoint_answer = lambda _: web.json_response({"url": "http://169.254.169.254/"})
    async with running_fleet(a=odd, b=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await fleet.ask()
        assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")
