"""A node that echoes the gateway's Authorization header everywhere: the token is shown nowhere."""

from __future__ import annotations

import base64
import logging
import socket
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading, Security
from cortexd.config.units import Duration
from cortexd.daemon.resolver import Address
from tests.fakes import GPU, FakeNeuron
from tests.functional.raw import connected, post
from tests.gateway.fleet import FAST, Fleet, running_fleet
from tests.waiting import until

TOKEN = "canary-0123456789/+x"
ENCODED = base64.b64encode(f"Bearer {TOKEN}".encode()).decode()
ECHO = f"bad request: Authorization: Bearer {TOKEN} ({ENCODED})"


def echoing(*models: str) -> FakeNeuron:
    """A neuron that needs TOKEN and puts it into each text that it sends."""
    neuron = FakeNeuron(
        {
            model: {
                "id": model,
                "status": "loaded",
                "servable": {"ok": model == "m", "reason": ECHO, "detail": ECHO},
                "error": ECHO,
                "harness": ECHO,
            }
            for model in models
        },
        discovery={
            "hostname": ECHO,
            "os": ECHO,
            "kernel": ECHO,
            "driver_version": ECHO,
            "devices": [GPU | {"name": ECHO}],
        },
        token=TOKEN,
    )
    neuron.health = {"activation": {"state": "ready", "failed": [{"model_id": "x", "error": ECHO}]}}

    async def load(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": ECHO, "code": ECHO}}, status=500)

    neuron.load_answer = load
    neuron.unload_answer = lambda body: web.json_response({"error": ECHO}, status=500)
    return neuron


async def shown(fleet: Fleet) -> str:
    """Return everything that the gateway tells of its nodes."""
    paths = [
        "/api/fleet",
        "/health",
        "/v1/models",
        "/metrics",
        "/api/explain?model=m",
        "/api/explain?model=cold",
    ]
    return "".join([(await fleet.get(path)).body.decode() for path in paths])


def assert_masked(text: str) -> None:
    assert "***" in text
    assert TOKEN not in text
    assert TOKEN.replace("/", "\\/") not in text
    assert ENCODED[10:20] not in text


async def test_token_that_a_node_echoes_is_masked_in_reports_refusals_and_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "cortexd")
    neuron = echoing("m", "broken")
    async with running_fleet(Profile("cold"), a=neuron, tokens={"a": TOKEN}) as fleet:
        refusals = [(await fleet.ask("cold")).body.decode()]  # the load fails
        refusals.append((await fleet.ask("broken")).body.decode())  # resident, not servable
        url = f"ftp://elsewhere.test/{TOKEN}"
        neuron.endpoint_answer = lambda _: web.json_response({"url": url})
        refusals.append((await fleet.ask()).body.decode())
        neuron.endpoint_answer = lambda _: web.json_response({"error": ECHO}, status=500)
        refusals.append((await fleet.ask()).body.decode())
        async with fleet.client.post(f"{fleet.admin_url}/api/models/m/unload", json={}) as response:
            refusals.append(await response.text())
        for refusal in refusals:
            assert_masked(refusal)
        assert_masked(await shown(fleet))
        neuron.raw["/models"] = f'{{"error": "{ECHO}"'.encode()
        await until(lambda: not fleet.gateway.registry.snapshot.nodes["a"].healthy)
        neuron.raw["/models"] = b"HTTP/1.1 " + ECHO.encode()
        assert TOKEN not in await shown(fleet)
    assert_masked(caplog.text)


async def test_token_is_masked_in_an_inference_error_that_is_quoted_after_a_wait() -> None:
    neuron = FakeNeuron({}, token=TOKEN)

    async def refuse(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": ECHO}}, status=500)

    neuron.infer = refuse
    neuron.release.clear()
    config = Config(polling=FAST, loading=Loading(keepalive=Duration(0.05)))
    async with (
        running_fleet(Profile("m"), a=neuron, tokens={"a": TOKEN}, config=config) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        body = b'{"model":"m","messages":[],"stream":true}'
        await client.send(post(body))
        await until(lambda: bool(fleet.loads("a")))
        await client.read_until(b"loading")
        neuron.release.set()
        assert_masked((await client.read_until(b"\r\n0\r\n\r\n")).decode())


@pytest.mark.parametrize("stream", [False, True])
async def test_token_is_masked_in_the_headers_of_every_answer(stream: bool) -> None:
    neuron = FakeNeuron({"m": "loaded"}, token=TOKEN)

    async def answer_with_echo(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        kind = "text/event-stream" if stream else "application/json"
        headers = {"Content-Type": kind, "X-Debug": f"Bearer {TOKEN}", "X-Other": "kept"}
        return web.Response(body=b"data: {}\n\n" if stream else b"{}", headers=headers)

    neuron.infer = answer_with_echo
    async with running_fleet(a=neuron, tokens={"a": TOKEN}) as fleet:
        answer = await fleet.ask(stream=stream)
        assert answer.status == 200
        assert answer.headers["X-Debug"] == "Bearer ***"
        assert answer.headers["X-Other"] == "kept"


@pytest.mark.parametrize("status", [400, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
async def test_token_is_masked_in_an_inference_error_that_is_passed_on(
    status: int, stream: bool
) -> None:
    neuron = FakeNeuron({"m": "loaded"}, token=TOKEN)

    async def refuse(request: web.Request, body: dict[str, Any]) -> web.Response:
        given = request.headers["Authorization"]
        return web.json_response(
            {"error": {"message": f"bad header: {given}", "n": 1}},
            status=status,
            headers={"Authorization": given, "Retry-After": "3"},
        )

    neuron.infer = refuse
    async with running_fleet(a=neuron, tokens={"a": TOKEN}) as fleet:
        answer = await fleet.ask(stream=stream)
        assert answer.status == status
        assert answer.json == {"error": {"message": "bad header: Bearer ***", "n": 1}}
        assert answer.headers["Retry-After"] == "3"
        assert TOKEN not in str(answer.headers)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ({}, "it requires a token: set token_file"),
        ({"a": "another"}, "it rejected the token in CORTEX_TOKEN__A"),
    ],
)
async def test_node_that_rejects_the_gateway_says_whether_a_token_is_missing_or_wrong(
    tokens: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, token in tokens.items():
        monkeypatch.setenv(f"CORTEX_TOKEN__{name.upper()}", token)
    neuron = FakeNeuron({"m": "loaded"}, token=TOKEN)
    async with running_fleet(a=neuron, tokens=tokens) as fleet:
        assert fleet.gateway.registry.snapshot.nodes["a"].trouble == reason
        assert reason in (await fleet.get("/api/fleet")).body.decode()


async def reject(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "Invalid API key"}}, status=401)


@pytest.mark.parametrize(
    ("tokens", "hint"),
    [
        ({}, "It requires a token: set token_file."),
        ({"a": TOKEN}, "It rejected the token in CORTEX_TOKEN__A."),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_401_of_a_node_is_not_passed_on_to_the_client(
    tokens: dict[str, str], hint: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTEX_TOKEN__A", TOKEN)
    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = reject
    async with running_fleet(a=neuron, tokens=tokens) as fleet:
        answer = await fleet.ask(stream=stream)
        assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_failed")
        message = answer.json["error"]["message"]
        assert "did not accept the gateway's request for 'm': Invalid API key. " in message
        assert message.endswith(hint)


async def test_token_that_is_not_sent_to_another_host_is_named_as_the_reason() -> None:
    engine = FakeNeuron(host="127.0.0.2")
    engine.infer = reject
    neuron = FakeNeuron({"m": "loaded"}, token=TOKEN)
    neuron.endpoint_answer = lambda _: web.json_response({"url": url})

    async def at_engine(name: str) -> list[Address]:
        return [Address(socket.AF_INET, engine.host)]

    config = Config(polling=FAST, security=Security(allowed_inference_hosts=("engine",)))
    async with (
        engine.running(),
        running_fleet(a=neuron, tokens={"a": TOKEN}, config=config) as fleet,
    ):
        url = f"http://engine:{engine.port}"
        fleet.gateway._resolver._ask_system = at_engine
        answer = await fleet.ask()
        assert answer.status == 502
        assert f"token is not sent to {url}, which is not on its own host" in answer.body.decode()
        assert "Authorization" not in engine.inference_headers[0]


async def test_another_replica_serves_when_a_node_rejects_the_gateway() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = reject
    async with running_fleet(a=neuron, b=FakeNeuron({"m": "loaded"})) as fleet:
        for _ in range(4):
            answer = await fleet.ask()
            assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")
