"""Endpoints that lead back to the gateway: refused, or bounded if the loop can't be seen."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from aiohttp import web

from cortexd.config.gateway import Config, Gateway, Neuron
from cortexd.errors import Refusal
from cortexd.gateway import app
from cortexd.gateway.hops import MAX_HOPS, count_hops
from tests.fakes import FakeNeuron
from tests.functional.forwarding import PortMapping
from tests.gateway.fleet import FAST, Fleet, running_fleet
from tests.waiting import until


def naming(url: str) -> web.Response:
    return web.json_response({"url": url})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.1"])
async def test_endpoint_that_is_the_gateways_own_listener_is_refused(host: str) -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with running_fleet(a=neuron) as fleet:
        port = fleet.gateway.address[1]
        neuron.endpoint_answer = lambda _: naming(f"http://{host}:{port}")
        answer = await fleet.ask()
        assert (answer.status, answer.headers["x-cortex-code"]) == (422, "endpoint_refused")
        message = answer.json["error"]["message"]
        assert "leads back to this gateway" in message
        assert "[[neurons]] endpoint" in message
        assert await fleet.metric("cortexd_requests_total") == 1


async def test_another_replica_serves_when_one_names_the_gateways_own_listener() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with running_fleet(a=neuron, b=FakeNeuron({"m": "loaded"})) as fleet:
        neuron.endpoint_answer = lambda _: naming(fleet.url)
        for _ in range(4):
            answer = await fleet.ask()
            assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")


async def test_endpoint_that_is_a_socket_of_the_service_manager_is_refused() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with neuron.running():
            gateway = app.Gateway(
                Config(
                    gateway=Gateway(admin_listen=""),
                    polling=FAST,
                    neurons=(Neuron("a", neuron.url),),
                ),
                sockets={"listen": [sock.dup()]},
            )
            await gateway.start()
            try:
                neuron.endpoint_answer = lambda _: naming(gateway.url)
                fleet = Fleet(gateway, {}, None)  # type: ignore[arg-type]
                async with aiohttp.ClientSession() as fleet.client:
                    answer = await fleet.ask()
                    assert answer.headers["x-cortex-code"] == "endpoint_refused"
            finally:
                await gateway.close()


async def test_node_whose_endpoint_is_the_gateways_own_listener_is_down_and_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        where = f"127.0.0.1:{sock.getsockname()[1]}"
        for endpoint in (f"http://{where}", where.replace("127.0.0.1", "http://localhost")):
            gateway = app.Gateway(
                Config(
                    gateway=Gateway(admin_listen=""),
                    polling=FAST,
                    neurons=(Neuron("a", endpoint),),
                ),
                sockets={"listen": [sock.dup()]},
            )
            await gateway.start()
            try:
                nodes = gateway.registry
                await until(lambda nodes=nodes: nodes.snapshot.nodes["a"].trouble is not None)
                node = nodes.snapshot.nodes["a"]
                assert node.trouble is not None
                assert "this gateway itself; set `endpoint`" in node.trouble
            finally:
                await gateway.close()


async def test_loop_through_a_port_mapping_ends_after_a_few_hops() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with (
        running_fleet(a=neuron) as fleet,
        PortMapping(fleet.gateway.address).running() as mapping,
    ):
        neuron.endpoint_answer = lambda _: naming(mapping.url)
        answer = await fleet.ask()
        assert answer.status == 422
        assert answer.json["error"]["code"] == "loop_detected"
        assert answer.headers["x-should-retry"] == "false"
        assert "endpoint of a node leads back" in answer.json["error"]["message"]
        assert mapping.connections == MAX_HOPS + 1
        answer = await fleet.ask(path="/v1/messages")
        assert (answer.status, answer.json["error"]["type"]) == (422, "invalid_request_error")


async def test_number_of_hops_goes_to_the_node_and_is_one_more() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with running_fleet(a=neuron) as fleet:
        for given, sent in (
            ({}, "1"),
            ({"X-Cortex-Hops": "3"}, "4"),
            ({"x-cortex-hops": "a"}, "1"),
        ):
            assert (await fleet.ask(headers=given)).status == 200
            assert neuron.inference_headers[-1].getall("x-cortex-hops") == [sent]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "hops"), [(None, 0), ("", 0), ("0", 0), ("4", 4), ("-1", 0), ("²", 0), ("1.5", 0)]
)
def test_hops_are_a_plain_number(value: str | None, hops: int) -> None:
    assert count_hops(value) == hops


@pytest.mark.parametrize("value", [str(MAX_HOPS + 1), "9" * 10_000])
def test_too_many_hops_are_a_refusal(value: str) -> None:
    with pytest.raises(Refusal) as refused:
        count_hops(value)
    assert refused.value.kind.status == 422
