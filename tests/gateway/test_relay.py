"""One request's life, seen from outside: a whole gateway before fake neurons, on real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Gateway
from cortexd.config.units import Size
from cortexd.daemon.access import AccessLog
from tests.fakes import FakeNeuron
from tests.functional.raw import connected
from tests.gateway.fleet import FAST, running_fleet
from tests.waiting import GUARD, until


async def test_a_loaded_model_is_served_and_the_answer_says_how() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await fleet.ask()
        assert answer.status == 200
        assert answer.json["choices"][0]["message"]["content"] == "hello"
        assert answer.headers["x-cortex-node"] == "a"
        assert answer.headers["x-cortex-model"] == "m"
        assert answer.headers["x-cortex-route"] == "loaded"
        assert answer.headers["x-cortex-cold-start"] == "false"
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["Server"] == "cortexd"


async def test_a_catalogue_model_is_cold_loaded_once_and_loaded_after() -> None:
    async with running_fleet(Profile("m"), a=FakeNeuron(), b=FakeNeuron()) as fleet:
        first = await fleet.ask()
        second = await fleet.ask()
        assert (first.headers["x-cortex-route"], first.headers["x-cortex-cold-start"]) == (
            "cold",
            "true",
        )
        assert second.headers["x-cortex-route"] == "loaded"
        assert len(fleet.loads("a")) == 1
        assert not fleet.loads("b")
        assert await fleet.metric("cortexd_cold_starts_total", model="m", kind="cold") == 1
        assert await fleet.metric("cortexd_loads_total", model="m", node="a", result="ok") == 1
        assert await fleet.metric("cortexd_load_duration_seconds_count", model="m") == 1


async def test_an_unloaded_model_is_served_where_it_is_known_without_a_load_call() -> None:
    async with running_fleet(
        Profile("m"), a=FakeNeuron(), b=FakeNeuron({"m": "unloaded"})
    ) as fleet:
        answer = await fleet.ask()
        assert answer.status == 200
        assert answer.headers["x-cortex-node"] == "b"
        assert answer.headers["x-cortex-route"] == "lazy"
        assert answer.headers["x-cortex-cold-start"] == "true"
        assert not fleet.loads("a")
        assert not fleet.loads("b")
        assert (await fleet.ask()).headers["x-cortex-route"] == "loaded"
        assert await fleet.metric("cortexd_cold_starts_total", model="m", kind="lazy") == 1


async def test_those_who_come_during_a_lazy_start_join_it_on_the_same_node() -> None:
    waking = asyncio.Event()

    def sleepy(neuron: FakeNeuron) -> FakeNeuron:
        answer_now = neuron.infer

        async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            await waking.wait()
            return await answer_now(request, body)

        neuron.infer = infer
        return neuron

    neurons = {name: sleepy(FakeNeuron({"m": "unloaded"})) for name in "ab"}
    async with running_fleet(Profile("m"), **neurons) as fleet:
        asking = [asyncio.create_task(fleet.ask()) for _ in range(8)]
        await until(lambda: sum(len(neuron.inference) for neuron in neurons.values()) == 8)
        waking.set()
        answers = await asyncio.gather(*asking)
        assert {answer.headers["x-cortex-node"] for answer in answers} == {"a"}
        assert {answer.headers["x-cortex-route"] for answer in answers} == {"lazy"}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_bytes_pass_through_unchanged(stream: bool) -> None:
    odd = b'data: {"x":"\xc3\xa9\xf0\x9f\x8e\x89 \\ud83c"}\r\n\r\n: comment\n\ndata: [DONE]\n\n'

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for at in range(0, len(odd), 7):
            await response.write(odd[at : at + 7])
        return response

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with running_fleet(a=neuron) as fleet:
        answer = await fleet.ask(stream=stream)
        assert answer.body == odd
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["X-Accel-Buffering"] == "no"


async def test_the_first_event_arrives_while_the_upstream_is_still_thinking() -> None:
    rest = asyncio.Event()

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await rest.wait()
        await response.write(b"data: 2\n\n")
        return response

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with (
        running_fleet(a=neuron) as fleet,
        fleet.client.post(
            fleet.url + "/v1/chat/completions", json={"model": "m", "stream": True}
        ) as response,
    ):
        assert await response.content.readany() == b"data: 1\n\n"
        rest.set()
        assert await response.read() == b"data: 2\n\n"


async def test_an_upstream_error_passes_through_intact() -> None:
    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(
            {"error": {"code": 400, "message": "too long"}}, status=400, headers={"X-Extra": "1"}
        )

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with running_fleet(a=neuron) as fleet:
        answer = await fleet.ask()
        assert answer.status == 400
        assert answer.json == {"error": {"code": 400, "message": "too long"}}
        assert answer.headers["X-Extra"] == "1"
        assert answer.headers["x-cortex-node"] == "a"


async def test_an_alias_reaches_the_node_as_the_concrete_id() -> None:
    async with running_fleet(
        a=FakeNeuron({"team/m": "loaded"}), aliases={"small": "team/m"}
    ) as fleet:
        raw = b'{"a":1.50,"model":"small","messages":[],"z":{"k":[1e5, "\\u00e9"]}}'
        async with fleet.client.post(fleet.url + "/v1/chat/completions", data=raw) as response:
            assert response.status == 200
            assert response.headers["x-cortex-model"] == "team/m"
        assert fleet.neurons["a"].inference[0] == json.loads(raw) | {"model": "team/m"}


async def test_the_clients_secrets_stay_with_the_gateway_and_the_nodes_token_goes_up() -> None:
    neuron = FakeNeuron({"m": "loaded"}, token="node-token")
    async with running_fleet(a=neuron, tokens={"a": "node-token"}) as fleet:
        answer = await fleet.ask(
            headers={
                "Authorization": "Bearer client-key",
                "x-api-key": "client-key",
                "Cookie": "session=client-key",
                "x-cortex-node": "b",
                "Connection": "keep-alive, X-Hop",
                "X-Hop": "client-key",
                "X-Kept": "yes",
                "anthropic-beta": "tools",
            }
        )
        assert answer.status == 200
        sent = neuron.inference_headers[0]
        assert "client-key" not in str(sent)
        assert sent["Authorization"] == "Bearer node-token"
        assert sent["Accept-Encoding"] == "identity"
        assert sent["X-Kept"] == "yes"
        assert sent["anthropic-beta"] == "tools"
        ours = {name.lower() for name in sent if name.lower().startswith("x-cortex")}
        assert ours == {"x-cortex-hops"}
        assert sent["X-Request-Id"] == answer.headers["x-request-id"]


async def test_what_the_upstream_says_of_itself_is_taken_off() -> None:
    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(
            {}, headers={"Server": "llama.cpp", "Set-Cookie": "a=b", "x-cortex-node": "evil"}
        )

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with running_fleet(a=neuron) as fleet:
        answer = await fleet.ask()
        assert answer.headers["Server"] == "cortexd"
        assert "Set-Cookie" not in answer.headers
        assert answer.headers["x-cortex-node"] == "a"


async def test_expose_route_false_hides_all_but_the_request_id() -> None:
    config = Config(polling=FAST, gateway=Gateway(expose_route=False))
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        answer = await fleet.ask(headers={"x-request-id": "my.id:1"})
        assert answer.headers["x-request-id"] == "my.id:1"
        assert not [name for name in answer.headers if name.lower().startswith("x-cortex")]


async def test_a_redirect_is_passed_on_and_never_followed() -> None:
    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "http://169.254.169.254/"})

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with (
        running_fleet(a=neuron) as fleet,
        fleet.client.post(
            fleet.url + "/v1/chat/completions", json={"model": "m"}, allow_redirects=False
        ) as response,
    ):
        assert response.status == 307


async def test_the_query_goes_along() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        await fleet.ask(path="/v1/messages?beta=true")
        assert fleet.neurons["a"].calls[-1][1] == "/v1/messages"
        answer = await fleet.ask(path="/v1/messages?beta=true")
        assert answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_credentials_of_the_client_reach_no_node() -> None:
    targets: list[str] = []

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        targets.append(request.path_qs)
        return web.json_response({})

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with running_fleet(a=neuron) as fleet:
        keys = ("api-key", "x-goog-api-key", "x-api-key", "Authorization", "Cookie")
        path = "/v1/messages?key=s3cret&beta=true"
        await fleet.ask(path=path, headers=dict.fromkeys(keys, "s3cret"))
        assert targets == ["/v1/messages?beta=true"]
        assert "s3cret" not in str(neuron.inference_headers)


async def test_a_client_that_leaves_takes_its_upstream_request_along() -> None:
    left = asyncio.Event()
    begun = asyncio.Event()

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.set()
            raise
        return response

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with running_fleet(a=neuron) as fleet:
        async with (
            aiohttp.ClientSession() as leaving,
            leaving.post(fleet.url + "/v1/chat/completions", json={"model": "m", "stream": True}),
        ):
            await begun.wait()
        async with asyncio.timeout(GUARD):
            await left.wait()
        await until(lambda: not fleet.gateway.registry.ledger.in_flight)
        assert await fleet.metric("cortexd_requests_total", status="499") == 1


async def test_an_answer_cut_in_the_middle_never_looks_complete() -> None:
    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = infer
    async with running_fleet(a=neuron) as fleet:
        with pytest.raises(aiohttp.ClientError):
            await fleet.ask(stream=True)
        await until(lambda: not fleet.gateway.registry.ledger.in_flight)
        assert await fleet.metric("cortexd_streams_interrupted_total", by="upstream") == 1


async def test_a_refused_connection_is_tried_on_another_replica() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    neuron = FakeNeuron({"m": "loaded"})
    neuron.endpoint_answer = lambda _: web.json_response({"url": f"http://localhost:{port}"})
    async with running_fleet(a=neuron, b=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await fleet.ask()
        assert answer.status == 200
        assert answer.headers["x-cortex-node"] == "b"
        assert await fleet.metric("cortexd_upstream_retries_total", reason="refused") == 1
        assert not fleet.gateway.registry.ledger.in_flight


async def test_a_refused_connection_asks_the_node_where_it_serves_now() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        old = closed.getsockname()[1]
    neuron = FakeNeuron({"m": "loaded"})
    ports = [old]
    neuron.endpoint_answer = lambda _: web.json_response(
        {"url": f"http://localhost:{ports.pop() if ports else neuron.port}"}
    )
    async with running_fleet(a=neuron) as fleet:
        answer = await fleet.ask()
        assert (answer.status, answer.headers["x-cortex-node"]) == (200, "a")


async def test_the_endpoint_is_asked_for_once_and_kept() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        for _ in range(3):
            await fleet.ask()
        assert len(fleet.neurons["a"].called("GET", "/models/m/endpoint")) == 1


async def test_the_tokens_of_both_modes_are_counted() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        await fleet.ask()
        await fleet.ask(stream=True)
        await fleet.ask(path="/tokenize")
        assert await fleet.metric("cortexd_prompt_tokens_total", model="m", node="a") == 14
        assert await fleet.metric("cortexd_completion_tokens_total", model="m", node="a") == 4
        assert await fleet.metric("cortexd_usage_missing_total") == 0
        assert await fleet.metric("cortexd_time_to_first_token_seconds_count", model="m") == 1
        assert (
            await fleet.metric(
                "cortexd_requests_total", model="m", path="/v1/chat/completions", status="200"
            )
            == 2
        )


async def test_invented_model_names_add_no_series() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        for number in range(20):
            assert (await fleet.ask(f"invented-{number}")).status == 404
        text = (await fleet.get("/metrics")).body
        assert b"invented" not in text
        assert await fleet.metric("cortexd_requests_total", model="_other", status="404") == 20
        assert await fleet.metric("cortexd_refusals_total", code="model_not_found") == 20


async def test_one_access_line_a_request_without_prompts_or_keys(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    log = io.StringIO()
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), access=AccessLog(log)) as fleet:
        await fleet.ask(
            messages=[{"role": "user", "content": "canary-prompt"}],
            headers={"Authorization": "Bearer canary-key"},
        )
    [line] = log.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["status"], fields["node"], fields["route"]) == (200, "a", "loaded")
    assert (fields["prompt_tokens"], fields["completion_tokens"]) == (7, 2)
    everything = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "canary" not in line + everything


async def test_a_body_over_the_bound_is_refused_before_it_is_read() -> None:
    config = Config(polling=FAST, gateway=Gateway(max_body=Size(1000)))
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        async with connected(fleet.gateway.address) as client:
            await client.send(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n"
            )
            head = await client.read_until(b"\r\n\r\n")
            assert b" 413 " in head
            assert b"x-cortex-code: request_too_large" in head
        # A length that is not declared is found out while reading.
        answer = await fleet.client.post(fleet.url + "/v1/completions", data=_chunks(b"x" * 400, 3))
        assert answer.status == 413
        assert not fleet.neurons["a"].inference


async def _chunks(chunk: bytes, count: int) -> Any:
    for _ in range(count):
        yield chunk


async def test_expect_100_continue_is_answered() -> None:
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        body = msgspec.json.encode({"model": "m"})
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        assert (await client.read_rest()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_compressed_body_is_refused_in_words() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await fleet.ask(headers={"Content-Encoding": "br"})
        assert answer.status == 415
        assert answer.json["error"]["code"] == "unsupported_encoding"
