"""Each refusal as a caller sees it: status, code, envelope and Retry-After, in both dialects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from cortexd import errors
from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading, Upstream
from cortexd.config.units import Duration
from cortexd.errors import KINDS, Refusal
from cortexd.gateway.refusals import answer, dialect_of, envelope, status_of
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, Answer, Fleet, running_fleet
from tests.waiting import until

BROKEN = {
    "id": "m",
    "status": "loaded",
    "servable": {"ok": False, "reason": "wedged", "detail": "CUDA error"},
}


def assert_refused(
    got: Answer, code: str, status: int, *, kind: str, retry_after: str | None, param: Any = None
) -> None:
    assert got.status == status
    assert got.headers["x-cortex-code"] == code
    assert got.headers.get("Retry-After") == retry_after
    assert got.headers["Content-Type"].startswith("application/json")
    assert got.headers["x-request-id"]
    error = got.json["error"]
    assert list(got.json) == ["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert error["message"].rstrip().endswith((".", ". "))


async def refused(fleet: Fleet, code: str, status: int, retry_after: str | None) -> str:
    """Ask for "m" in both dialects, check both envelopes, and return the message."""
    got = await fleet.ask()
    kind = "invalid_request_error" if status < 500 else "api_error"
    assert_refused(got, code, status, kind=kind, retry_after=retry_after)
    theirs = await fleet.ask(path="/v1/messages")
    assert theirs.status == (529 if status == 503 else status)
    assert theirs.headers["x-cortex-code"] == code
    assert theirs.headers["request-id"] == theirs.json["request_id"]
    assert theirs.json["type"] == "error"
    assert theirs.json["error"]["type"] == {
        404: "not_found_error",
        422: "invalid_request_error",
        503: "overloaded_error",
    }.get(status, "api_error")
    assert not fleet.gateway.registry.ledger.in_flight
    return str(got.json["error"]["message"])


async def test_no_nodes_at_all() -> None:
    async with running_fleet(Profile("m")) as fleet:
        message = await refused(fleet, "no_feasible_neuron", 422, None)
        assert "[[neurons]]" in message


async def test_no_healthy_nodes() -> None:
    neuron = FakeNeuron()
    neuron.unreachable = True
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        assert "a (" in await refused(fleet, "no_healthy_nodes", 503, "5")


async def test_feasible_node_unhealthy() -> None:
    away = FakeNeuron()
    away.unreachable = True
    async with running_fleet(Profile("m", pinned_on=("b",)), a=FakeNeuron(), b=away) as fleet:
        assert "b, which is unhealthy (" in await refused(
            fleet, "feasible_node_unhealthy", 503, "3"
        )


async def test_model_unservable_carries_the_nodes_reason() -> None:
    async with running_fleet(a=FakeNeuron({"m": BROKEN})) as fleet:
        message = await refused(fleet, "model_unservable", 503, "5")
        assert "a says wedged: CUDA error" in message


async def test_model_recovering() -> None:
    config = Config(polling=FAST, loading=Loading(timeout=Duration(0.1)))
    async with running_fleet(a=FakeNeuron({"m": "recovering"}), config=config) as fleet:
        await refused(fleet, "model_recovering", 503, "2")


async def test_model_not_found() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        assert "GET /v1/models" in await refused(fleet, "model_not_found", 404, None)


async def test_no_feasible_neuron_is_not_worth_retrying() -> None:
    async with running_fleet(Profile("m", min_devices=4), a=FakeNeuron()) as fleet:
        message = await refused(fleet, "no_feasible_neuron", 422, None)
        assert "a: 4 devices of 0 MiB or more needed, it has 1 device of 24000 MiB" in message
        assert (await fleet.ask()).headers["x-should-retry"] == "false"


async def test_cold_load_failed_carries_the_nodes_words_and_what_is_left_of_the_back_off() -> None:
    neuron = FakeNeuron()

    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "file is truncated"}}, status=500)

    neuron.load_answer = fail
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        first = await fleet.ask()
        assert_refused(first, "cold_load_failed", 502, kind="api_error", retry_after="15")
        assert "a says file is truncated. It" in first.json["error"]["message"]
        again = await fleet.ask(path="/v1/messages")
        assert again.status == 502
        assert again.json["error"]["type"] == "api_error"
        assert 1 <= int(again.headers["Retry-After"]) <= 15
        assert len(fleet.loads("a")) == 1  # the second was refused without a load
        assert await fleet.metric("cortexd_loads_total", result="failed") == 1


async def test_load_timeout() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    config = Config(polling=FAST, loading=Loading(timeout=Duration(0.1)))
    async with running_fleet(Profile("m"), a=neuron, config=config) as fleet:
        message = await refused(fleet, "model_loading", 503, "10")
        assert "still loading on a" in message
        assert len(fleet.gateway.table) == 0


async def test_endpoint_resolve_failed() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.endpoint_answer = lambda _: web.json_response({"error": "confused"}, status=500)
    async with running_fleet(a=neuron) as fleet:
        assert "confused" in await refused(fleet, "endpoint_resolve_failed", 502, "2")


async def test_a_loaded_model_without_an_endpoint_is_decided_anew_once_then_refused() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.endpoint_answer = lambda _: web.json_response({"error": "never heard"}, status=404)
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        got = await fleet.ask()
        assert got.status == 502
        assert got.headers["x-cortex-code"] == "endpoint_resolve_failed"
        # Back to the table: it was loaded anew, in vain.
        assert len(fleet.loads("a")) == 1


async def test_endpoint_refused_prints_the_line_that_would_allow_it() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.endpoint_answer = lambda _: web.json_response({"url": "http://169.254.169.254/"})
    async with running_fleet(a=neuron) as fleet:
        message = await refused(fleet, "endpoint_refused", 422, None)
        assert '[security] allowed_inference_hosts = ["169.254.169.254"]' in message


async def test_upstream_failed() -> None:
    async def hang_up(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = hang_up
    async with running_fleet(a=neuron) as fleet:
        await refused(fleet, "upstream_failed", 502, "1")


async def test_upstream_timeout() -> None:
    async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    neuron = FakeNeuron({"m": "loaded"})
    neuron.infer = hang
    config = Config(polling=FAST, upstream=Upstream(first_byte_timeout=Duration(0.1)))
    async with running_fleet(a=neuron, config=config) as fleet:
        got = await fleet.ask(stream=True)
        assert_refused(got, "upstream_timeout", 504, kind="api_error", retry_after="1")


async def test_waiters_are_told_of_a_shutdown_at_once() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: bool(fleet.loads("a")))
        closing = asyncio.create_task(fleet.gateway.close())
        got = await asking
        assert_refused(got, "shutting_down", 503, kind="api_error", retry_after="1")
        await closing


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_kind_has_an_envelope_in_both_dialects(kind: errors.Kind) -> None:
    refusal = Refusal(kind, "Words.")
    assert status_of(refusal, "openai") == kind.status
    assert kind.code.encode() in envelope(refusal, "openai", "req_1")
    assert b'"request_id":"req_1"' in envelope(refusal, "anthropic", "req_1")
    response = answer(refusal, "openai", "req_1")
    assert response.headers["x-cortex-code"] == kind.code
    assert response.headers.get("Retry-After") == (kind.retry_after and str(kind.retry_after))


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_refusal_that_a_retry_can_not_help_has_a_status_that_clients_do_not_retry(
    kind: errors.Kind,
) -> None:
    # What the OpenAI and Anthropic SDKs and the agents built on them try again.
    is_retried = kind.status in {408, 409, 429} or kind.status >= 500
    if not kind.should_retry:
        assert not is_retried
        assert kind.retry_after is None
        assert answer(Refusal(kind, "Words."), "openai", "r").headers["x-should-retry"] == "false"
        assert status_of(Refusal(kind, "Words."), "anthropic") == kind.status
    if kind.retry_after is not None:
        assert is_retried


def test_refusal_that_only_an_operator_can_cure_is_not_retried() -> None:
    assert not errors.NO_FEASIBLE_NEURON.should_retry
    assert not errors.ENDPOINT_REFUSED.should_retry


@pytest.mark.parametrize(
    ("status", "openai", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "invalid_request_error", "authentication_error"),
        (403, "invalid_request_error", "permission_error"),
        (404, "invalid_request_error", "not_found_error"),
        (405, "invalid_request_error", "invalid_request_error"),
        (413, "invalid_request_error", "request_too_large"),
        (422, "invalid_request_error", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "api_error", "api_error"),
        (502, "api_error", "api_error"),
        (503, "api_error", "overloaded_error"),
        (504, "api_error", "api_error"),
    ],
)
def test_the_types_of_both_dialects(status: int, openai: str, anthropic: str) -> None:
    refusal = Refusal(errors.Kind("x", status), "Words.")
    assert f'"type":"{openai}"'.encode() in envelope(refusal, "openai", "r")
    assert f'"error":{{"type":"{anthropic}"'.encode() in envelope(refusal, "anthropic", "r")


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messages/nonsense", "anthropic"),
        ("/v1/messagesx", "openai"),
        ("/v1/chat/completions", "openai"),
        ("/nonsense", "openai"),
    ],
)
def test_the_path_tells_the_dialect(path: str, dialect: str) -> None:
    assert dialect_of(path) == dialect
