"""The faces as a whole: which paths there are, and what stands at each."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from cortexd import __version__
from cortexd.config.gateway import Config, Neuron, Polling
from cortexd.config.gateway import Gateway as GatewayConfig
from cortexd.config.units import Duration
from cortexd.gateway.app import INFERENCE_PATHS, Gateway, read_tokens
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet, until


@pytest.mark.parametrize("path", INFERENCE_PATHS)
async def test_every_inference_path_is_relayed_to_the_same_path(path: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        assert (await fleet.ask(path=path)).status == 200
        assert fleet.neurons["a"].calls[-1][:2] == ("POST", path)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "unknown_route"),
        ("POST", "/v1/chat/completions/", 404, "unknown_route"),
        ("POST", "/v1//chat/completions", 404, "unknown_route"),
        ("POST", "/v1/chat/../chat/completions", 404, "unknown_route"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/x", 405, "method_not_allowed"),
        ("POST", "/api/reload", 404, "unknown_route"),
    ],
)
async def test_anything_else_is_refused(method: str, path: str, status: int, code: str) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        # By hand: a client library would tidy the path up.
        reader, writer = await asyncio.open_connection(*fleet.gateway.address)
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert f"x-cortex-code: {code}\r\n".encode() in answer


@pytest.mark.parametrize("path", ["/", "/health", "/version", "/v1/models", "/metrics"])
async def test_head_is_get_without_a_body(path: str) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        async with fleet.client.head(fleet.url + path) as response:
            assert response.status == 200
            assert await response.read() == b""
        assert (await fleet.get(path)).status == 200


async def test_ready_is_200_only_with_a_healthy_node() -> None:
    neuron = FakeNeuron()
    fast = Config(polling=Polling(Duration(0.05), Duration(1), unhealthy_after=1))
    async with running_fleet(a=neuron, config=fast) as fleet:
        assert (await fleet.get("/ready")).status == 200
        neuron.unreachable = True
        await until(lambda: not fleet.gateway.registry.snapshot.healthy)
        assert (await fleet.get("/ready")).status == 503
        health = await fleet.get("/health")
        assert (health.status, health.json["status"]) == (200, "degraded")
        neuron.unreachable = False
        await until(lambda: fleet.gateway.registry.snapshot.healthy == 1)
        assert (await fleet.get("/ready")).status == 200


async def test_the_gateway_starts_with_no_node_at_all() -> None:
    async with running_fleet() as fleet:
        assert (await fleet.get("/health")).json == {"status": "ok", "reasons": []}
        assert (await fleet.get("/ready")).status == 503
        assert (await fleet.get("/version")).json == {"version": __version__}


async def test_metrics_can_have_a_listener_of_their_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = Config(gateway=GatewayConfig(metrics_listen=f"127.0.0.1:{port}"))
    async with running_fleet(config=config) as fleet:
        assert (await fleet.get("/metrics")).status == 404
        async with fleet.client.get(f"http://127.0.0.1:{port}/metrics") as response:
            assert b"cortexd_build_info" in await response.read()
        async with fleet.client.get(f"http://127.0.0.1:{port}/health") as response:
            assert response.status == 404


async def test_a_taken_port_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(
            gateway=GatewayConfig(listen=f"127.0.0.1:{taken.getsockname()[1]}"),
            neurons=(Neuron("a", "http://127.0.0.1:1"),),
        )
        with pytest.raises(OSError, match="in use"):
            await Gateway(config).start()


def test_tokens_are_read_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "a.token").write_text("s3cret\n")
    config = Config(
        neurons=(Neuron("a", "http://a", token_file="a.token"), Neuron("b", "http://b"))
    )
    assert read_tokens(config, tmp_path) == {"a": "s3cret"}
