"""The neuron's wire over real sockets, spoken by the gateway's own client where it can be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from cortexd.config.gateway import Config, Neuron
from cortexd.config.gateway import Gateway as GatewaySettings
from cortexd.config.neuron import Agent, Paths
from cortexd.config.units import Size
from cortexd.gateway.app import Gateway
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.wire.neuron import LoadRequest, UnloadRequest
from tests.functional.forwarding import PortMapping
from tests.functional.raw import answered, answers, connected, post
from tests.neuron.engines import FakeHarness, local, running_neuron
from tests.waiting import GUARD, eventually, until


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    """What the engine was sent."""
    seen = {
        "path": request.raw_path,
        "headers": {name.lower(): value for name, value in request.headers.items()},
        "body": (await request.read()).decode(),
    }
    return web.json_response(seen, headers={"X-Engine": "fake"})


async def in_flight(client: NeuronClient) -> list[int | None]:
    return [each.in_flight for each in (await client.health(GUARD)).models or ()]


async def test_the_gateways_client_walks_the_whole_wire(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").touch()
    paths = Paths(models=(str(tmp_path),))
    async with running_neuron(local("a"), harness=FakeHarness(), paths=paths) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        discovery = await client.discovery(GUARD)
        assert discovery.harnesses == ["fake"]
        assert discovery.devices[0].kind == "cpu"
        assert [(each.id, each.status) for each in await client.models(GUARD)] == [
            ("a", "unloaded")
        ]
        assert await client.load(LoadRequest("hf:b")) == "loaded"
        assert await client.load(LoadRequest("b")) == "loaded"
        listed = {each.id: each for each in await client.models(GUARD)}
        assert listed["b"].status == "loaded"
        assert listed["b"].harness == "fake"
        assert listed["b"].devices == [0]
        assert listed["b"].vram_used_mb == 100
        assert listed["b"].capabilities == ["text"]
        health = await client.health(GUARD)
        assert health.uptime_secs is not None
        assert health.devices is not None
        assert health.devices[0].vram_used_mb == 100
        assert health.activation is not None
        assert health.activation.state == "ready"
        assert [(each.id, each.in_flight) for each in health.models or ()] == [("b", 0)]
        assert await client.endpoint("b", GUARD) == neuron.url
        assert await client.unload(UnloadRequest("b", if_idle=True), GUARD) == "unloaded"
        with pytest.raises(NodeError) as gone:
            await client.endpoint("b", GUARD)
        assert gone.value.status == 404


@pytest.mark.parametrize("model", ["a/b", "Qwen/Qwen3-8B", "100%", "ä ö/ü", "x%2Fy", "m:8b", "a?b"])
async def test_an_id_is_one_segment_of_a_path_whatever_it_holds(model: str) -> None:
    async with running_neuron(local(model), harness=FakeHarness()) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        assert await client.endpoint(model, GUARD) == neuron.url


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("localhost", "http://localhost"),
    ],
)
async def test_endpoint_has_the_authority_that_the_neuron_was_asked_through(
    host: str, named: str
) -> None:
    async with (
        running_neuron(local("a"), harness=FakeHarness()) as (_, session),
        session.get("/models/a/endpoint", headers={"Host": host}) as answer,
    ):
        assert await answer.json() == {"url": named}


async def test_caller_without_a_host_is_told_the_neurons_own_port() -> None:
    async with running_neuron(local("a"), harness=FakeHarness()) as (neuron, _):
        ask = b"GET /models/a/endpoint HTTP/1.0\r\n\r\n"
        answer = await answered(neuron.address, ask)
        assert answer.endswith(b'{"url":"http://localhost:%d"}' % neuron.address[1])


async def test_inference_for_a_neuron_behind_a_port_mapping_goes_through_the_mapping() -> None:
    async with (
        running_neuron(local("a/b"), harness=FakeHarness(serve=echo)) as (neuron, _),
        PortMapping(neuron.address).running() as mapping,
    ):
        gateway = Gateway(
            Config(
                gateway=GatewaySettings(listen="127.0.0.1:0", admin_listen=""),
                neurons=(Neuron("a", mapping.url),),
            )
        )
        await gateway.start()
        try:
            await until(lambda: gateway.registry.snapshot.settled)
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{gateway.url}/v1/completions", json={"model": "a/b"}) as answer,
            ):
                assert answer.status == 200
            assert b"POST /v1/completions" in mapping.sent
        finally:
            await gateway.close()


async def test_an_allowed_page_is_served_by_a_neuron_behind_the_gateway() -> None:
    page = {"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}
    async with running_neuron(local("a"), harness=FakeHarness(serve=echo)) as (neuron, _):
        gateway = Gateway(
            Config(
                gateway=GatewaySettings(
                    listen="127.0.0.1:0", admin_listen="", cors_origins=(page["Origin"],)
                ),
                neurons=(Neuron("a", neuron.url),),
            )
        )
        await gateway.start()
        try:
            await until(lambda: gateway.registry.snapshot.settled)
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    f"{gateway.url}/v1/completions", json={"model": "a"}, headers=page
                ) as answer,
            ):
                assert answer.status == 200
                seen = (await answer.json())["headers"]
            assert not {"origin", "sec-fetch-site"} & seen.keys()
        finally:
            await gateway.close()


async def test_slashes_of_an_id_may_come_as_they_are() -> None:
    async with running_neuron(local("a/b/c"), harness=FakeHarness()) as (neuron, session):
        for spelling in ("a/b/c", "a%2Fb/c", "a%2fb%2fc"):
            url = URL(f"{neuron.url}/models/{spelling}/endpoint", encoded=True)
            async with session.get(url) as answer:
                assert answer.status == 200, spelling
        async with session.get(f"/models/{quote('a/b', safe='')}/endpoint") as answer:
            assert answer.status == 404


async def test_a_request_goes_to_the_engine_as_it_came_but_for_the_callers_secrets() -> None:
    harness = FakeHarness(serve=echo)
    async with running_neuron(local("a/b"), harness=harness) as (_, session):
        body = b'{ "model":"a/b", "x": [1.0, {}] }'
        for path in (
            "/v1/chat/completions?beta=true&x=1",
            "/v1/messages/count_tokens",
            "/rerank",
        ):
            async with session.post(
                URL(path, encoded=True),
                data=body,
                headers={"Authorization": "Bearer caller", "X-Api-Key": "k", "X-Other": "kept"},
            ) as answer:
                assert answer.status == 200
                assert answer.headers["X-Engine"] == "fake"
                seen = await answer.json()
            assert seen["path"] == path
            assert seen["body"] == body.decode()
            assert seen["headers"]["authorization"] == "Bearer engine-key"
            assert seen["headers"]["x-other"] == "kept"
            assert "x-api-key" not in seen["headers"]
        assert harness.events == ["start a/b"]


async def test_a_client_that_leaves_ends_its_request_at_the_engine_and_frees_its_place() -> None:
    left = asyncio.Event()

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: {}\n\n")
                await asyncio.sleep(0.01)
        finally:
            left.set()

    async with running_neuron(local("a"), harness=FakeHarness(serve=endless)) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        async with session.post("/v1/completions", json={"model": "a"}) as answer:
            await answer.content.readany()
            assert await in_flight(client) == [1]
            answer.close()
        async with asyncio.timeout(GUARD):
            await left.wait()

        async def is_free() -> bool:
            return await in_flight(client) == [0]

        await eventually(is_free)


async def test_a_client_that_leaves_while_it_is_held_does_not_cancel_the_load() -> None:
    harness = FakeHarness(serve=echo)
    harness.release.clear()
    async with running_neuron(local("a"), harness=harness) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        impatient = asyncio.ensure_future(session.post("/v1/completions", json={"model": "a"}))
        await until(lambda: harness.events == ["start a"])
        impatient.cancel()
        await asyncio.wait({impatient})
        harness.release.set()

        async def is_loaded() -> bool:
            return (await client.models(GUARD))[0].status == "loaded"

        await eventually(is_loaded)
        assert harness.events == ["start a"]


async def test_an_engine_that_is_gone_is_said_in_the_callers_envelope() -> None:
    harness = FakeHarness()  # its engine's url leads nowhere
    async with (
        running_neuron(local("a"), harness=harness) as (_, session),
        session.post("/v1/completions", json={"model": "a"}) as answer,
    ):
        assert answer.status == 502
        assert answer.headers["Retry-After"] == "1"
        assert (await answer.json())["error"]["code"] == "upstream_failed"


async def test_a_load_that_fails_is_told_to_the_held_request_too() -> None:
    harness = FakeHarness()
    harness.broken = "no magic"
    async with running_neuron(local("a"), harness=harness) as (_, session):
        async with session.post("/v1/completions", json={"model": "a"}) as answer:
            assert answer.status == 500
            error = (await answer.json())["error"]
        assert error["code"] == "load_failed"
        assert error["type"] == "api_error"
        assert "no magic" in error["message"]
        async with session.post("/models/load", json={"model_id": "a"}) as answer:
            assert answer.status == 500
            assert "no magic" in (await answer.json())["error"]


INFERENCE = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", INFERENCE, '{"model":"other"}', 404, "model_not_found"),
        ("POST", INFERENCE, '{"messages":[]}', 400, "missing_model"),
        ("POST", INFERENCE, '{"model":7}', 400, "missing_model"),
        ("POST", INFERENCE, "[]", 400, "missing_model"),
        ("POST", INFERENCE, "{", 400, "invalid_json"),
        ("POST", INFERENCE, "", 400, "invalid_json"),
        ("POST", INFERENCE, "[" * 100_000, 400, "missing_model"),
        ("GET", INFERENCE, "", 405, "method_not_allowed"),
        ("POST", "/v1/", '{"model":"a"}', 404, "unknown_route"),
        ("GET", "/v1/responses/resp_1", "", 404, "unknown_route"),
        ("POST", "/v1/responses/resp_1/cancel", "", 404, "unknown_route"),
        ("POST", "/v1/responses/input_tokens", "{}", 400, "missing_model"),
        ("POST", "/v1", '{"model":"a"}', 404, "unknown_route"),
        ("POST", "/v1/../slots", '{"model":"a"}', 404, "unknown_route"),
        ("POST", "/v1/%2e%2e/slots", '{"model":"a"}', 404, "unknown_route"),
        ("POST", "/v1/x%2F..%2Fslots", '{"model":"a"}', 404, "unknown_route"),
        ("POST", "/slots", '{"model":"a"}', 404, "unknown_route"),
    ],
)
async def test_what_is_wrong_with_an_inference_request_is_said_as_openai_does(
    method: str, path: str, body: str, status: int, code: str
) -> None:
    async with running_neuron(local("a"), harness=FakeHarness(serve=echo)) as (neuron, session):
        url = URL(neuron.url + path, encoded=True)
        async with session.request(method, url, data=body) as answer:
            assert answer.status == status
            error = (await answer.json())["error"]
        assert error["code"] == code
        assert error["type"] == "invalid_request_error"
        assert error["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/models/load", {"model_id": "none"}, 404, "model_not_found"),
        ("/models/load", {"model_id": "../a"}, 404, "model_not_found"),
        ("/models/load", {"model_id": "a", "harness": "vllm"}, 422, "unknown_harness"),
        ("/models/load", {"model_id": "a", "devices": [1]}, 422, "unknown_device"),
        ("/models/load", {"model": "a"}, 400, "invalid_value"),
        ("/models/unload", {"model_id": "none"}, 404, "model_not_found"),
    ],
)
async def test_what_is_wrong_with_a_management_call_is_said_in_the_wires_words(
    path: str, body: dict[str, Any], status: int, code: str
) -> None:
    async with (
        running_neuron(local("a"), harness=FakeHarness()) as (_, session),
        session.post(path, json=body) as answer,
    ):
        assert answer.status == status
        fault = await answer.json()
    assert fault["code"] == code
    assert isinstance(fault["error"], str)


async def test_if_idle_is_answered_with_409_while_a_request_runs() -> None:
    answering = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await answering.wait()
        return web.json_response({})

    async with running_neuron(local("a"), harness=FakeHarness(serve=slow)) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        running = asyncio.ensure_future(session.post("/v1/completions", json={"model": "a"}))

        async def is_running() -> bool:
            return await in_flight(client) == [1]

        await eventually(is_running)
        with pytest.raises(NodeError) as refused:
            await client.unload(UnloadRequest("a", if_idle=True), GUARD)
        assert (refused.value.status, refused.value.code) == (409, "busy")
        answering.set()
        async with await running as answer:
            assert answer.status == 200


async def test_a_compressed_body_is_refused() -> None:
    async with (
        running_neuron(local("a"), harness=FakeHarness()) as (_, session),
        session.post(
            "/v1/completions", data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}
        ) as answer,
    ):
        assert answer.status == 415
        assert answer.headers["Accept-Encoding"] == "identity"
        assert (await answer.json())["error"]["code"] == "unsupported_encoding"


async def test_with_a_token_nothing_is_answered_without_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "token").chmod(0o600)
    agent = Agent(listen="127.0.0.1:0", token_file="token")
    harness = FakeHarness(serve=echo)
    async with running_neuron(local("a"), harness=harness, agent=agent, base=tmp_path) as (
        neuron,
        session,
    ):
        calls = [
            *(("GET", path) for path in ("/discovery", "/health", "/models", "/nope")),
            ("GET", "/models/a/endpoint"),
            *(("POST", path) for path in ("/models/load", "/models/unload", "/v1/completions")),
        ]
        body = json.dumps({"model": "a", "model_id": "a"})
        for method, path in calls:
            for given in (None, "Bearer wrong", "Basic s3cret", "s3cret", "Bearer \u00e4"):
                headers = {} if given is None else {"Authorization": given}
                async with session.request(method, path, data=body, headers=headers) as answer:
                    assert answer.status == 401, (path, given)
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                    assert "s3cret" not in await answer.text()
        assert harness.events == []
        client = NeuronClient(session, neuron.url, token="s3cret")
        assert await client.load(LoadRequest("a")) == "loaded"
        async with session.post(
            "/v1/completions", data=body, headers={"Authorization": "Bearer s3cret"}
        ) as answer:
            assert (await answer.json())["headers"]["authorization"] == "Bearer engine-key"


async def test_rejected_caller_is_named_in_the_log_and_its_token_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    agent = Agent(listen="127.0.0.1:0", token_file=str(secret))
    async with running_neuron(local("a"), harness=FakeHarness(), agent=agent) as (_, session):
        words = []
        for headers in ({}, {"Authorization": "Bearer wr0ng"}, {"Authorization": "Bearer wr0ng"}):
            async with session.get("/models", headers=headers) as answer:
                words.append((await answer.json())["error"])
    assert words[0] == "This neuron requires a token; send it as a bearer token."
    assert words[1] == "This neuron has another token than the one that was sent."
    [line] = [line for line in caplog.messages if line.startswith("rejected")]
    assert line.startswith("rejected GET /models from 127.0.0.1: no token")
    assert "wr0ng" not in caplog.text


async def test_a_failure_of_our_own_is_an_envelope_and_one_traceback_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_neuron(local("a"), harness=FakeHarness()) as (neuron, session):
        monkeypatch.setattr(neuron._residency, "models", lambda: 1 / 0)
        async with session.get("/models") as answer:
            assert answer.status == 500
            assert (await answer.json())["code"] == "internal_error"
        assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/models/load", 405, "method_not_allowed"),
        ("POST", "/models", 405, "method_not_allowed"),
        ("POST", "/models/a/endpoint", 405, "method_not_allowed"),
        ("GET", "/models/endpoint", 404, "unknown_route"),
        ("GET", "/models//endpoint", 404, "unknown_route"),
        ("GET", "/models/b/endpoint", 404, "model_not_found"),
        ("GET", "/models/a", 404, "unknown_route"),
        ("GET", "/health/", 404, "unknown_route"),
    ],
)
async def test_only_what_is_listed_is_a_route(
    method: str, path: str, status: int, code: str
) -> None:
    async with (
        running_neuron(local("a"), harness=FakeHarness()) as (neuron, session),
        session.request(method, URL(neuron.url + path, encoded=True)) as answer,
    ):
        assert answer.status == status
        assert (await answer.json())["code"] == code
        assert ("Allow" in answer.headers) == (status == 405)


async def test_head_is_get_without_a_body() -> None:
    async with (
        running_neuron(local("a"), harness=FakeHarness()) as (_, session),
        session.head("/models") as answer,
    ):
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) > 0
        assert await answer.read() == b""


async def test_a_body_over_the_bound_is_refused_in_the_callers_envelope() -> None:
    agent = Agent(listen="127.0.0.1:0", max_body=Size(100))
    async with running_neuron(local("a"), harness=FakeHarness(serve=echo), agent=agent) as (
        _,
        session,
    ):
        async with session.post("/v1/completions", json={"model": "a"}) as answer:
            assert answer.status == 200
        async with session.post("/v1/completions", json={"model": "a", "x": "y" * 100}) as answer:
            assert answer.status == 413
            error = (await answer.json())["error"]
        assert error["code"] == "request_too_large"
        assert "[neuron] max_body" in error["message"]


def test_the_bounds_are_the_gateways_by_default() -> None:
    agent, gateway = Agent(), GatewaySettings()
    assert (agent.max_body, agent.max_buffered) == (gateway.max_body, gateway.max_buffered)


async def test_all_bodies_together_are_bounded() -> None:
    agent = Agent(listen="127.0.0.1:0", max_body=Size(1000), max_buffered=Size(1500))
    async with running_neuron(local("a"), harness=FakeHarness(serve=echo), agent=agent) as (
        neuron,
        session,
    ):
        async with connected(neuron.address) as first:
            await first.send(post(b"x" * 1000)[:-1])
            bodies = neuron._api._bodies
            await until(lambda: bodies.held == 999)
            async with session.post("/v1/completions", data=b" " * 600) as answer:
                assert answer.status == 503
                assert (await answer.json())["error"]["code"] == "overloaded"
        await until(lambda: bodies.held == 0)


FORM = 'multipart/form-data; boundary="a b"'


def form(*parts: bytes) -> bytes:
    return b"".join(b"--a b\r\nContent-Disposition: form-data; " + part for part in parts) + (
        b"--a b--\r\n"
    )


FILE = b'name="file"; filename="s.mp3"\r\n\r\n' + bytes(range(256)) * 400 + b"\r\n"
MODEL = b'name="model"\r\n\r\na\r\n'


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits"])
@pytest.mark.parametrize("body", [form(MODEL, FILE), form(FILE, MODEL)])
async def test_a_form_goes_to_the_engine_byte_for_byte(path: str, body: bytes) -> None:
    seen: list[tuple[str, bytes]] = []

    async def keep(request: web.BaseRequest) -> web.StreamResponse:
        seen.append((request.headers["Content-Type"], await request.read()))
        return web.json_response({})

    async with (
        running_neuron(local("a"), harness=FakeHarness(serve=keep)) as (_, session),
        session.post(path, data=body, headers={"Content-Type": FORM}) as answer,
    ):
        assert answer.status == 200
        assert seen == [(FORM, body)]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(FILE), "missing_model"),
        (form(FILE)[:-5], "bad_request"),
        (form(b'name="model"\r\n\r\n\xff\r\n'), "bad_request"),
        (b'{"model":"a"}', "bad_request"),
    ],
)
async def test_a_bad_form_is_refused(body: bytes, code: str) -> None:
    async with (
        running_neuron(local("a"), harness=FakeHarness(serve=echo)) as (_, session),
        session.post(
            "/v1/audio/transcriptions", data=body, headers={"Content-Type": FORM}
        ) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == code


async def test_json_is_announced_to_the_engine_as_json_and_without_its_byte_order_mark() -> None:
    async with running_neuron(local("a"), harness=FakeHarness(serve=echo)) as (_, session):
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            async with session.post(
                "/v1/completions",
                data=b'\xef\xbb\xbf{"model":"a"}',
                headers={"Content-Type": kind},
            ) as answer:
                seen = await answer.json()
            assert seen["headers"]["content-type"] == "application/json"
            assert seen["body"] == '{"model":"a"}'


@pytest.mark.parametrize("path", ["/models/load", "/models/unload"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_management_call_without_json_content_type_is_refused(path: str, kind: str) -> None:
    harness = FakeHarness()
    async with running_neuron(local("a"), harness=harness) as (neuron, session):
        await NeuronClient(session, neuron.url).load(LoadRequest("a"))
        async with session.post(
            path, data=b'{"model_id":"a"}', headers={"Content-Type": kind}
        ) as answer:
            assert answer.status == 415
            assert (await answer.json())["code"] == "unsupported_media_type"
        assert harness.events == ["start a"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "https://evil.example"}, "forbidden_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "forbidden_origin"),
        ({"Origin": "http://evil.example", "Host": "evil.example"}, "forbidden_host"),
        ({"Sec-Fetch-Site": "same-origin", "Host": "evil.example"}, "forbidden_host"),
    ],
)
async def test_no_page_of_another_origin_or_of_a_rebound_name_is_answered(
    headers: dict[str, str], code: str
) -> None:
    harness = FakeHarness(serve=echo)
    async with running_neuron(local("a"), harness=harness) as (_, session):
        for method, path in (
            ("GET", "/models"),
            ("POST", "/models/load"),
            ("POST", "/v1/completions"),
        ):
            async with session.request(
                method, path, json={"model": "a", "model_id": "a"}, headers=headers
            ) as answer:
                assert answer.status == 403
                fault = await answer.json()
            assert (fault if "code" in fault else fault["error"])["code"] == code
        assert harness.events == []


async def test_a_gateway_reaches_a_neuron_under_any_name() -> None:
    async with (
        running_neuron(local("a"), harness=FakeHarness()) as (_, session),
        session.get("/models", headers={"Host": "gpu1.corp.example:13131"}) as answer,
    ):
        assert answer.status == 200


async def test_unfinished_management_calls_hold_no_more_than_a_call_has() -> None:
    async with running_neuron(local("a"), harness=FakeHarness()) as (neuron, _):
        head = "POST /models/load HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        raw = f"{head}Content-Length: {60 << 20}\r\n\r\n".encode()
        (answer,) = answers(await answered(neuron.address, raw), "POST")
        assert answer.status == 413
        async with connected(neuron.address) as caller:
            await caller.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            await caller.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            await until(lambda: neuron._api._management.held == 0x10000)
            await caller.send(b"1\r\n \r\n")
            assert (await caller.read_answer()).status == 413
        await until(lambda: neuron._api._management.held == 0)


@pytest.mark.parametrize("path", ["/models/load", "/v1/completions"])
async def test_bad_http_is_refused_in_the_callers_envelope(path: str) -> None:
    raw = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    harness = FakeHarness(serve=echo)
    async with running_neuron(local("a"), harness=harness) as (neuron, _):
        (answer,) = answers(await answered(neuron.address, raw.encode() * 2), "POST")
        assert answer.status == 400
        said = json.loads(answer.body)
        assert (said if "code" in said else said["error"])["code"] == "bad_request"
        assert isinstance(said["error"], str) == (path == "/models/load")
        assert harness.events == []


async def test_a_request_whose_body_has_arrived_is_past_no_deadline_while_it_waits() -> None:
    go = asyncio.Event()
    sizes: list[int] = []

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        sizes.append(len(await request.read()))
        await go.wait()
        return web.json_response({})

    async with running_neuron(local("a"), harness=FakeHarness(serve=serve)) as (neuron, _):
        listener = neuron._listener
        assert listener is not None
        for size in range(60 << 10, 140 << 10, 5 << 10):
            go.clear()
            async with connected(neuron.address) as caller:
                await caller.send(post(b'{"model":"a"}'.ljust(size)))
                await until(lambda size=size: size in sizes)
                (door,) = listener.server.doors
                assert door.overdue(asyncio.get_running_loop().time() + 3600) is None, size
                go.set()
                assert (await caller.read_answer()).status == 200
            await until(lambda: not listener.server.doors)
