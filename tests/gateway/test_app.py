"""The faces as a whole: which paths there are, and what stands at each."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from cortexd import __version__
from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Eviction, Neuron, Polling
from cortexd.config.gateway import Gateway as GatewayConfig
from cortexd.config.units import AutoDuration, Duration
from cortexd.fleet.explain import Explanation
from cortexd.gateway.accounting import Accounting
from cortexd.gateway.app import INFERENCE_PATHS, Gateway
from cortexd.gateway.inbound import Inbound
from tests.fakes import FakeNeuron
from tests.functional.raw import answered, answers, connected, post
from tests.gateway.fleet import running_fleet
from tests.waiting import until


@pytest.mark.parametrize("path", INFERENCE_PATHS)
async def test_every_inference_path_is_relayed_to_the_same_path(path: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        assert (await fleet.ask(path=path)).status == 200
        assert fleet.neurons["a"].calls[-1][:2] == ("POST", path)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "unknown_route"),
        ("POST", "/v1/chat/completion/", 404, "unknown_route"),
        ("POST", "//nope/", 404, "unknown_route"),
        ("POST", "/v1/chat/../chat/completions", 404, "unknown_route"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/x", 405, "method_not_allowed"),
        ("POST", "/api/reload", 404, "unknown_route"),
    ],
)
async def test_anything_else_is_refused(method: str, path: str, status: int, code: str) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        # By hand: a client library would tidy the path up.
        raw = post(b"", "Connection: close", method=method, path=path)
        (answer,) = answers(await answered(fleet.gateway.address, raw), method)
        assert (answer.status, answer.code) == (status, code)


async def test_unknown_paths_are_counted_apart_from_refusals() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        assert await fleet.metric("cortexd_unknown_paths_total") == 0
        assert (await fleet.get("/wp-login.php")).status == 404
        assert (await fleet.get("/v1/models/nope")).status == 404
        assert await fleet.metric("cortexd_unknown_paths_total") == 1
        assert await fleet.metric("cortexd_refusals_total") == 1
        assert await fleet.metric("cortexd_refusals_total", code="model_not_found") == 1
        text = (await fleet.get("/metrics")).body.decode()
        assert 'code="unknown_route"' not in text


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/models/a/b", "GET, HEAD, OPTIONS"),
        ("HEAD", "/api/events", "GET, OPTIONS"),
    ],
)
async def test_wrong_method_is_405_with_allow(method: str, path: str, allow: str) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        async with fleet.client.request(method, fleet.url + path) as response:
            assert (response.status, response.headers["Allow"]) == (405, allow)
        async with fleet.client.options(fleet.url + path) as response:
            assert (response.status, response.headers["Allow"]) == (204, allow)
            assert await response.read() == b""


async def test_options_of_the_server_itself_are_answered() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        raw = post(b"", "Connection: close", method="OPTIONS", path="*")
        (answer,) = answers(await answered(fleet.gateway.address, raw), "OPTIONS")
        assert (answer.status, answer.get("allow")) == (204, "GET, HEAD, POST, OPTIONS")


async def test_a_websocket_is_declined_at_once_and_the_connection_goes_on() -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        heard = await client.ask(post(b"", *upgrade, method="GET", path="/v1/responses"))
        assert (heard.status, heard.code) == (426, "upgrade_required")
        assert (heard.get("upgrade"), heard.get("allow")) == ("HTTP/1.1", "POST, OPTIONS")
        assert heard.get("x-should-retry") == "false"
        assert (await client.ask(post(b'{"model":"m"}'))).status == 200


async def test_an_upgrade_that_an_inference_request_offers_is_ignored() -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket")
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        assert (await client.ask(post(b'{"model":"m"}', *upgrade))).status == 200
        assert await client.read_rest() == b""  # what follows could not be told apart


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_reachability_probe_of_agents_is_answered(method: str) -> None:
    async with (
        running_fleet(a=FakeNeuron()) as fleet,
        fleet.client.request(method, f"{fleet.url}/api/hello") as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1//chat/completions", "/v1/chat/completions"),
        ("/v1/messages//", "/v1/messages"),
        ("/rerank/?x=1", "/rerank?x=1"),
    ],
)
async def test_slashes_too_many_are_served(given: str, served: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        raw = post(b'{"model":"m"}', "Connection: close", path=given)
        (answer,) = answers(await answered(fleet.gateway.address, raw), "POST")
        assert answer.status == 200
        assert fleet.neurons["a"].calls[-1][1] == served.partition("?")[0]


@pytest.mark.parametrize(
    ("given", "status", "expected"),
    [
        ("//v1//models/", 200, "list"),
        ("/v1/models//", 200, "list"),
        ("/v1/models/org/name", 200, "model"),
        ("/v1/models/org/name/", 200, "model"),
        ("/v1//models//org/name", 200, "model"),
        ("/v1/models/org//name", 404, None),
        ("/v1/modelsorg/name", 404, None),
        ("/health/", 200, None),
        ("//", 200, None),
    ],
)
async def test_slashes_within_a_model_id_are_its_own(
    given: str, status: int, expected: str | None
) -> None:
    async with running_fleet(a=FakeNeuron({"org/name": "loaded"})) as fleet:
        raw = post(b"", "Connection: close", method="GET", path=given)
        (answer,) = answers(await answered(fleet.gateway.address, raw), "GET")
        assert answer.status == status
        if expected is not None:
            found = json.loads(answer.body)
            assert found["object"] == expected
            assert expected == "list" or found["id"] == "org/name"


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


SMUGGLED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n"
SMUGGLED += b'{"model":"m"}'


@pytest.mark.parametrize(
    ("path", "field", "status", "code"),
    [
        (b"/v1/chat/completions", b"Transfer-Encoding: gzip, chunked", 400, "bad_request"),
        (b"/v1/chat/completions", b"Content-Length: 1, 1", 400, "bad_request"),
        (b"/" + b"a" * 9000, b"", 414, "uri_too_long"),
        (b"/v1/chat/completions", b"X: " + b"a" * 40_000, 431, "head_too_large"),
    ],
)
async def test_what_is_no_good_http_never_reaches_a_node(
    path: bytes, field: bytes, status: int, code: str
) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        raw = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + field + b"\r\n\r\n0\r\n\r\n"
        (answer,) = answers(await answered(fleet.gateway.address, raw + SMUGGLED), "POST")
        assert (answer.status, answer.code) == (status, code)
        assert str(answer.get("x-request-id")).startswith("req_")
        error = json.loads(answer.body)["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        assert error["message"].endswith(".")
        assert await fleet.metric("cortexd_refusals_total", code=code) == 1
        assert fleet.neurons["a"].inference == []


async def test_bad_http_on_an_anthropic_path_is_said_in_its_own_words() -> None:
    raw = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n"
    raw += b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    async with running_fleet() as fleet:
        (answer,) = answers(await answered(fleet.gateway.address, raw), "POST")
        assert answer.status == 400
        assert answer.get("request-id") == "mine"
        body = json.loads(answer.body)
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages"])
async def test_a_body_with_broken_chunks_is_a_bad_request(path: bytes) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        received = await answered(fleet.gateway.address, head + b"3\r\n{ \n\r\nzz\r\n" + SMUGGLED)
        (answer,) = answers(received, "POST")
        assert (answer.status, answer.code) == (400, "bad_request")
        assert fleet.neurons["a"].inference == []


async def test_a_request_on_its_way_when_the_gateway_closes_is_answered() -> None:
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        await client.send(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.read_until(b"}")
        closing = asyncio.ensure_future(fleet.gateway.close())
        await asyncio.sleep(0)
        await client.send(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        (answer,) = answers(await client.read_rest(), "GET")
        assert (answer.status, answer.get("connection")) == (503, "close")
        await closing


async def test_a_failure_behind_an_answer_is_no_second_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(accounting: Accounting, inbound: Inbound) -> None:
        raise RuntimeError

    monkeypatch.setattr(Accounting, "ended", fail)
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        await client.send(post(b'{"model":"m"}', path="/v1/completions"))
        assert (await client.read_rest()).count(b"HTTP/1.1") <= 1
    assert "RuntimeError" in caplog.text


async def test_a_decision_is_explained_and_not_taken() -> None:
    async with running_fleet(Profile("org/m"), aliases={"x y": "org/m"}, a=FakeNeuron()) as fleet:
        for name in ("org/m", "org%2Fm", "x+y", "x%20y"):
            answer = await fleet.get(f"/api/explain?model={name}")
            told = msgspec.json.decode(answer.body, type=Explanation)
            assert (told.model, told.decision, told.node) == ("org/m", "load", "a")
        assert fleet.loads("a") == []


async def test_an_explanation_needs_a_name() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        for query in ("", "?model=", "?node=a"):
            answer = await fleet.get(f"/api/explain{query}")
            assert (answer.status, answer.json["error"]["code"]) == (400, "missing_model")


async def test_a_name_that_nobody_has_is_explained_without_an_echo_of_secrets() -> None:
    async with running_fleet(tokens={"a": "canary"}, a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await fleet.get("/api/explain?model=%00%1b&key=canary")
        assert (answer.status, answer.json["code"]) == (200, "model_not_found")
        assert b"canary" not in answer.body


async def test_what_a_model_was_seen_to_take_is_known_after_a_restart(tmp_path: Path) -> None:
    """Until its profile changes."""
    seen = {"m": {"id": "m", "status": "loaded", "devices": [0], "vram_used_mb": 12000}}

    async def known(*models: Profile, **neurons: FakeNeuron) -> set[float]:
        async with running_fleet(*models, state_dir=tmp_path, **neurons) as fleet:
            return set(fleet.gateway.registry.ledger.footprints.values())

    m = Profile("m", vram_mb=9000)
    assert await known(m, a=FakeNeuron(seen)) == {12000.0}
    assert await known(m, a=FakeNeuron()) == {12000.0}
    assert await known(Profile("m", vram_mb=9500), a=FakeNeuron()) == set()


async def test_an_idle_model_makes_room_over_the_wire() -> None:
    """The node is asked to unload it only when it is idle, and both are served."""

    class Card(FakeNeuron):
        """Its memory holds one of them, and it says so."""

        async def _handle(self, request: web.Request) -> web.StreamResponse:
            used = sum(1 for status in self.models.values() if status == "loaded") * 18000
            self.health = {"devices": [{"index": 0, "vram_free_mb": 24000 - used}]}
            return await super()._handle(request)

    card = Card()
    config = Config(
        polling=Polling(interval=Duration(0.05)), eviction=Eviction(min_residency=AutoDuration(0))
    )
    models = Profile("m", vram_mb=18000), Profile("n", vram_mb=18000)
    async with running_fleet(*models, config=config, a=card) as fleet:
        for name in ("m", "n", "m"):
            assert (await fleet.ask(name)).status == 200
        assert [body["model_id"] for body in card.called("POST", "/models/load")] == [
            "m",
            "n",
            "m",
        ]
        unloads = card.called("POST", "/models/unload")
        assert unloads == [{"model_id": name, "if_idle": True} for name in ("m", "n")]
        for name in ("m", "n"):
            labels = {"model": name, "node": "a", "reason": "room"}
            assert await fleet.metric("cortexd_evictions_total", **labels) == 1
