"""Tokens are read from the tail of what passes, however it was cut; what is not said is counted as
not said."""

from __future__ import annotations

import json

import pytest

from tests.functional.faults import Close, Drip, Send, Step
from tests.functional.raw import post
from tests.proxy.stage import (
    ANSWER,
    ASKED,
    ASKED_STREAM,
    CHUNKED,
    JSON,
    LAST_CHUNK,
    OK,
    SSE,
    chunks,
    head,
    sized,
    staged,
    streamed,
)


def events(*datas: object, named: bool = False) -> bytes:
    parts = []
    for data in datas:
        if named:
            assert isinstance(data, dict)
            parts.append(f"event: {data['type']}\n")
        parts.append(f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n")
    return "".join(parts).encode()


TEXT = {"choices": [{"index": 0, "delta": {"content": "word " * 40}}]}
LONG = [TEXT] * 150  # some 37 kB: more than any tail that is kept
OPENAI = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
CACHED = OPENAI | {"prompt_tokens_details": {"cached_tokens": 5}}
RESPONSES = {"input_tokens": 7, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 5}}
TIMINGS = {"prompt_n": 2, "cache_n": 5, "predicted_n": 2, "predicted_ms": 12.5}
START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "content": [],
        "usage": {
            "input_tokens": 1,
            "output_tokens": 1,
            "cache_read_input_tokens": 5,
            "cache_creation_input_tokens": 1,
        },
    },
}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"text": "word " * 40}}
END = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 2}}
STOP = {"type": "message_stop"}
COMPLETED = {"type": "response.completed", "response": {"output": [], "usage": RESPONSES}}

CHAT = "/v1/chat/completions"
# path, body, cached tokens; each says 7 prompt and 2 completion tokens.
STREAMS = {
    "chat": (CHAT, events(TEXT, {"choices": [], "usage": OPENAI}, "[DONE]"), 0),
    "chat, long": (CHAT, events(*LONG, {"choices": [], "usage": CACHED}, "[DONE]"), 5),
    "usage in every event": (
        CHAT,
        events(
            *(TEXT | {"usage": OPENAI | {"completion_tokens": 1}} for _ in range(3)),
            TEXT | {"usage": OPENAI},
            "[DONE]",
        ),
        0,
    ),
    "usage of null in every other event": (
        CHAT,
        events(TEXT | {"usage": None}, {"choices": [], "usage": OPENAI}, "[DONE]"),
        0,
    ),
    "no [DONE]": (CHAT, events(TEXT, {"choices": [], "usage": OPENAI}), 0),
    "CRLF": (
        CHAT,
        events(TEXT, {"choices": [], "usage": OPENAI}, "[DONE]").replace(b"\n", b"\r\n"),
        0,
    ),
    "no space after the colon": (
        CHAT,
        events(TEXT, {"choices": [], "usage": OPENAI}).replace(b"data: ", b"data:"),
        0,
    ),
    "timings": (CHAT, events(*LONG, {"choices": [], "timings": TIMINGS}, "[DONE]"), 5),
    "completions": ("/v1/completions", events({"choices": [], "usage": OPENAI}, "[DONE]"), 0),
    "messages": ("/v1/messages", events(START, DELTA, END, STOP, named=True), 5),
    "messages, a delta of 0": (
        "/v1/messages",
        events(START, DELTA, END | {"usage": {"input_tokens": 0, "output_tokens": 2}}, named=True),
        5,
    ),
    "messages, long": ("/v1/messages", events(START, *[DELTA] * 200, END, STOP, named=True), 5),
    "responses": (
        "/v1/responses",
        events({"type": "response.created", "response": {}}, COMPLETED, named=True),
        5,
    ),
}
PLAIN = {
    "chat": (CHAT, {"choices": [TEXT], "usage": OPENAI}, 0),
    "chat, long": (CHAT, {"choices": LONG, "usage": CACHED}, 5),
    "timings": (CHAT, {"choices": [TEXT], "timings": TIMINGS}, 5),
    "embeddings": (
        "/v1/embeddings",
        {"data": [{"embedding": [0.125] * 9000}], "usage": OPENAI},
        0,
    ),
    "messages": (
        "/v1/messages",
        {"content": [{"text": "word"}], "usage": START["message"]["usage"] | END["usage"]},  # type: ignore[index,operator]
        5,
    ),
    "responses": ("/v1/responses", {"output": [{"text": "word"}], "usage": RESPONSES}, 5),
}


def paces(data: bytes) -> dict[str, list[Step]]:
    """The same bytes: at once, in TCP pieces of 997 and 64 bytes, and one by one (the last 3 kB,
    which is where counts stand, and the first 1 kB)."""
    few = [Drip(data[:1000]), Send(data[1000:-3000]), Drip(data[-3000:])]
    return {
        "at once": [Send(data)],
        "in pieces": [Drip(data, (997, 64))],
        "byte by byte": [Drip(data)] if len(data) < 4000 else few,
    }


async def counts(path: str, asked: bytes, script: list[Step], body: bytes) -> tuple[float, ...]:
    """Prompt, completion and cached tokens, and answers without counts, after one request."""
    async with staged(script) as stage:
        heard = await stage.ask(asked, path=path)
        assert (heard.complete, heard.body) == (True, body)
        await stage.wait_idle()
        metric = stage.fleet.metric
        return (
            await metric("cortexd_prompt_tokens_total", model="m", node="a"),
            await metric("cortexd_completion_tokens_total", model="m", node="a"),
            await metric("cortexd_cached_prompt_tokens_total", model="m", node="a"),
            await metric("cortexd_usage_missing_total", model="m"),
        )


@pytest.mark.parametrize("pace", ["at once", "in pieces", "byte by byte"])
@pytest.mark.parametrize("name", STREAMS)
async def test_the_tokens_of_a_stream_are_counted_however_it_is_cut(name: str, pace: str) -> None:
    path, body, cached = STREAMS[name]
    script = paces(streamed(*(event + b"\n\n" for event in body.split(b"\n\n")[:-1])))[pace]
    if b"\r\n\r\n" in body:
        script = paces(streamed(body))[pace]
    assert await counts(path, ASKED_STREAM, script, body) == (7, 2, cached, 0)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("name", ["chat, long", "messages, long", "responses"])
async def test_chunks_that_cut_through_events_do_not_matter(name: str, size: int) -> None:
    path, body, cached = STREAMS[name]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert await counts(path, ASKED_STREAM, [Send(streamed(*pieces))], body) == (7, 2, cached, 0)


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
async def test_the_tokens_of_a_stream_without_chunks_are_counted(name: str) -> None:
    path, body, cached = STREAMS[name]
    script = [Send(head(OK, SSE) + body), Close()]
    assert await counts(path, ASKED_STREAM, script, body) == (7, 2, cached, 0)


@pytest.mark.parametrize("pace", ["at once", "in pieces", "byte by byte"])
@pytest.mark.parametrize("framing", ["length", "chunked", "eof"])
@pytest.mark.parametrize("name", PLAIN)
async def test_the_tokens_of_an_answer_are_counted_however_it_is_cut(
    name: str, framing: str, pace: str
) -> None:
    path, answer, cached = PLAIN[name]
    body = json.dumps(answer, indent=1 if framing == "eof" else None).encode()
    data = {
        "length": head(OK, JSON, f"Content-Length: {len(body)}") + body,
        "chunked": head(OK, JSON, CHUNKED) + chunks(body[:50], body[50:]) + LAST_CHUNK,
        "eof": head(OK, JSON) + body,
    }[framing]
    script = [*paces(data)[pace], *([Close()] if framing == "eof" else [])]
    assert await counts(path, ASKED, script, body) == (7, 2, cached, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, events(TEXT, "[DONE]")),
        (CHAT, events(TEXT | {"usage": None}, "[DONE]")),
        (CHAT, events({"choices": [{"delta": {"content": '"usage": {"prompt_tokens": 9}'}}]})),
        (CHAT, b'data: {"usage": {"prompt_tokens": \n\ndata: [DONE]\n\n'),
        ("/v1/messages", events({"type": "ping"}, STOP, named=True)),
        ("/v1/responses", events({"type": "response.completed", "response": {}}, named=True)),
    ],
)
async def test_a_stream_without_counts_is_counted_as_such(path: str, body: bytes) -> None:
    assert await counts(path, ASKED_STREAM, [Send(streamed(body))], body) == (0, 0, 0, 1)


async def test_an_answer_without_counts_is_counted_as_such() -> None:
    body = b'{"choices": [], "usage": null}'
    script = [Send(head(OK, JSON, f"Content-Length: {len(body)}") + body)]
    assert await counts(CHAT, ASKED, script, body) == (0, 0, 0, 1)


async def test_an_error_answer_is_not_missing_its_counts() -> None:
    body = b'{"error": {"message": "too long"}}'
    script = [Send(head("HTTP/1.1 400 No", JSON, f"Content-Length: {len(body)}") + body)]
    assert await counts(CHAT, ASKED, script, body) == (0, 0, 0, 0)


async def test_counts_that_can_not_be_are_none_and_disturb_nothing() -> None:
    absurd = ANSWER.replace(b'"prompt_tokens":7', b'"prompt_tokens":-7')
    async with staged([Send(sized(absurd))]) as stage, stage.client() as client:
        for _ in range(2):
            heard = await client.ask(post(ASKED))
            assert (heard.status, heard.complete, heard.body) == (200, True, absurd)
        assert await stage.fleet.metric("cortexd_usage_missing_total") == 2
