"""Multipart forms through a whole gateway: what reaches the engine is what the client sent."""

from __future__ import annotations

import os

import pytest

from tests.fakes import FakeNeuron
from tests.gateway.fleet import Answer, Fleet, running_fleet

FORM = 'multipart/form-data; boundary="a b:c"'
TRANSCRIPTIONS = "/v1/audio/transcriptions"


def named(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--a b:c\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--a b:c--\r\n"


FILE = named("file", os.urandom(900 << 10) + b"\r\n--a b", '; filename="s.mp3"')
MODEL = named("model", b"m")


async def post(
    fleet: Fleet, body: bytes, path: str = TRANSCRIPTIONS, content_type: str = FORM
) -> Answer:
    headers = {"Content-Type": content_type}
    async with fleet.client.post(fleet.url + path, data=body, headers=headers) as response:
        return Answer(response.status, response.headers, await response.read())


@pytest.mark.parametrize(
    "path", [TRANSCRIPTIONS, "/v1/audio/translations", "/v1/images/edits", "/v1/chat/completions"]
)
@pytest.mark.parametrize(
    "body",
    [
        form(MODEL, FILE),
        form(FILE, MODEL),
        form(
            FILE,
            named("model", b"not this one"),
            named("timestamp_granularities[]", b"word"),
            named("timestamp_granularities[]", b"segment"),
            MODEL,
        ),
        b"\r\n" + form(MODEL, named("model", b"\0\xff", '; filename="model"')) + b"epilogue",
    ],
    ids=["model first", "model last", "repeated", "odd"],
)
async def test_a_form_reaches_the_engine_byte_for_byte(path: str, body: bytes) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        assert (await post(fleet, body, path)).status == 200
        neuron = fleet.neurons["a"]
        assert neuron.inference_bodies == [body]
        assert neuron.inference_headers[0]["Content-Type"] == FORM
        assert neuron.inference_headers[0]["Content-Length"] == str(len(body))


async def test_an_alias_changes_its_own_bytes_and_no_others() -> None:
    alias = named("model", b"team/speech")
    async with running_fleet(
        a=FakeNeuron({"m": "loaded"}), aliases={"team/speech": "m", "x": "y"}
    ) as fleet:
        for before, after in (
            (form(alias, FILE), form(MODEL, FILE)),
            (form(FILE, alias), form(FILE, MODEL)),
            (form(alias, FILE, alias), form(alias, FILE, MODEL)),
        ):
            answer = await post(fleet, before)
            assert answer.headers["x-cortex-model"] == "m"
            assert fleet.neurons["a"].inference_bodies[-1] == after


@pytest.mark.parametrize(
    ("body", "content_type", "code", "param"),
    [
        (form(FILE), FORM, "missing_model", "model"),
        (form(named("model", b"")), FORM, "missing_model", "model"),
        (form(named("model", b"m", '; filename="m"')), FORM, "missing_model", "model"),
        (form(named("model", b"\xff")), FORM, "invalid_value", "model"),
        (form(named("model", b"m" * 513)), FORM, "invalid_value", "model"),
        (form(MODEL, named("stream", b"perhaps")), FORM, "invalid_value", "stream"),
        (MODEL + FILE, FORM, "bad_request", None),
        (form(MODEL, FILE), "multipart/form-data", "bad_request", None),
        (form(MODEL, FILE).replace(b"\r\n", b"\n"), FORM, "bad_request", None),
        (form(*[MODEL] * 1000), FORM, "bad_request", None),
        (b'{"model":"m"}', FORM, "bad_request", None),
        (form(MODEL, FILE), "application/json", "invalid_json", None),
    ],
)
async def test_a_bad_form_is_refused_in_words(
    body: bytes, content_type: str, code: str, param: str | None
) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await post(fleet, body, content_type=content_type)
        assert (answer.status, answer.headers["x-cortex-code"]) == (400, code)
        assert answer.json["error"]["param"] == param
        assert not fleet.neurons["a"].inference


async def test_a_form_can_ask_for_a_stream() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        await post(fleet, form(FILE, named("stream", b"true"), MODEL))
        assert await fleet.metric("cortexd_time_to_first_byte_seconds_count", model="m") == 1
        await post(fleet, form(FILE, named("stream", b"false"), MODEL))
        assert await fleet.metric("cortexd_time_to_first_byte_seconds_count", model="m") == 1
