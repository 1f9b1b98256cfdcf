"""Request bodies in other forms than plain JSON, and the bytes that reach the engine."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import pytest
from backports import zstd

from cortexd.config.gateway import Config, Gateway
from cortexd.config.units import Size
from tests.fakes import FakeNeuron
from tests.functional.raw import answered, answers, post
from tests.gateway.fleet import FAST, Answer, Fleet, running_fleet

PLAIN = json.dumps({"model": "alias", "messages": [], "pad": "ab" * 100_000}).encode()
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}


async def send(fleet: Fleet, body: bytes, path: str = "/v1/responses", **headers: str) -> Answer:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with fleet.client.post(
        fleet.url + path, data=body, headers=fields, skip_auto_headers=("Content-Type",)
    ) as response:
        return Answer(response.status, response.headers, await response.read())


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("body", [PLAIN, b'{"model":"alias"}'], ids=["large", "small"])
async def test_an_encoded_body_goes_upstream_decoded(encoding: str, body: bytes) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), aliases={"alias": "m"}) as fleet:
        encoded = ENCODERS[encoding](body)
        answer = await send(
            fleet, encoded, Content_Encoding=encoding, Content_Type="application/json"
        )
        assert answer.status == 200
        neuron = fleet.neurons["a"]
        expected = body.replace(b'"alias"', b'"m"')
        assert neuron.inference_bodies == [expected]
        headers = neuron.inference_headers[0]
        assert headers["Content-Length"] == str(len(expected))
        assert headers["Content-Type"] == "application/json"
        assert "Content-Encoding" not in headers
        assert fleet.gateway._relay._bodies.held == 0


async def test_an_encoded_form_goes_upstream_decoded() -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    kind = "multipart/form-data; boundary=b"
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await send(fleet, gzip.compress(form), Content_Encoding="gzip", Content_Type=kind)
        assert answer.status == 200
        assert fleet.neurons["a"].inference_bodies == [form]
        assert fleet.neurons["a"].inference_headers[0]["Content-Type"] == kind


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress", "nonsense"])
async def test_another_encoding_is_415_and_says_which_are_taken(encoding: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await send(fleet, b"x", Content_Encoding=encoding)
        assert (answer.status, answer.headers["x-cortex-code"]) == (415, "unsupported_encoding")
        assert answer.headers["Accept-Encoding"] == "gzip, deflate, zstd"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_a_body_that_is_not_what_it_announces_is_refused(encoding: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        for body in (b'{"model":"m"}', ENCODERS[encoding](PLAIN)[:-5]):
            answer = await send(fleet, body, Content_Encoding=encoding)
            assert (answer.status, answer.json["error"]["code"]) == (400, "bad_request")
            assert encoding in answer.json["error"]["message"]
        assert (await send(fleet, b"", Content_Encoding=encoding)).headers["x-cortex-code"] == (
            "invalid_json"
        )
        assert fleet.gateway._relay._bodies.held == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_compressed_body_is_decoded_up_to_max_body_only(encoding: str) -> None:
    limits = Gateway(max_body=Size(1 << 20), max_buffered=Size(4 << 20))
    config = Config(polling=FAST, gateway=limits)
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        bomb = ENCODERS[encoding](bytes(100 << 20))
        assert len(bomb) < 1 << 20
        answer = await send(fleet, bomb, Content_Encoding=encoding)
        assert (answer.status, answer.headers["x-cortex-code"]) == (413, "request_too_large")
        body = b'{"model":"m"}'.ljust(1 << 20)
        assert (await send(fleet, ENCODERS[encoding](body), Content_Encoding=encoding)).status == (
            200
        )
        assert fleet.gateway._relay._bodies.held == 0


async def test_decoded_bytes_are_charged_to_max_buffered() -> None:
    limits = Gateway(max_body=Size(1 << 20), max_buffered=Size(1 << 20))
    config = Config(polling=FAST, gateway=limits)
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        bodies = fleet.gateway._relay._bodies
        bodies.held = 600 << 10
        body = b'{"model":"m"}'.ljust(500 << 10)
        answer = await send(fleet, gzip.compress(body), Content_Encoding="gzip")
        assert (answer.status, answer.headers["x-cortex-code"]) == (503, "overloaded")
        assert bodies.held == 600 << 10


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/octet-stream",
        None,
    ],
)
async def test_a_body_that_was_read_as_json_is_announced_as_json(kind: str | None) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        body = b'{"model":"m"}'
        fields = [f"Content-Type: {kind}"] if kind else []
        raw = post(body, *fields, "Connection: close")
        (answer,) = answers(await answered(fleet.gateway.address, raw), "POST")
        assert answer.status == 200
        headers = fleet.neurons["a"].inference_headers[0]
        assert headers.getall("Content-Type") == ["application/json"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_a_type_that_is_json_is_passed_on_as_it_is(kind: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        assert (await send(fleet, b'{"model":"m"}', Content_Type=kind)).status == 200
        assert fleet.neurons["a"].inference_headers[0]["Content-Type"] == kind


async def test_a_byte_order_mark_is_taken_off_and_the_alias_replaced() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), aliases={"alias": "m"}) as fleet:
        for name in (b"m", b"alias"):
            body = b'\xef\xbb\xbf{"model": "%b", "messages": [ ]}' % name
            assert (await send(fleet, body)).status == 200
            neuron = fleet.neurons["a"]
            assert neuron.inference_bodies[-1] == b'{"model": "m", "messages": [ ]}'
            assert neuron.inference_headers[-1]["Content-Length"] == "31"


async def test_operators_may_send_a_byte_order_mark_too() -> None:
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        fleet.client.post(
            fleet.admin_url + "/api/nodes/a/drain",
            data=b"\xef\xbb\xbf{}",
            headers={"Content-Type": "application/json"},
        ) as answer,
    ):
        assert answer.status == 200
