"""Keep-alive events against the decoders that clients have: none fails, none loses an event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from cortexd.wire.sse import after
from tests.functional.raw import Heard
from tests.gateway.decoders import (
    DECODERS,
    Decode,
    Event,
    concatenated,
    every_blank_line,
    langchain_js,
    line_by_line,
    parsed,
)
from tests.gateway.dialects import (
    CHAT,
    DIALECTS,
    MESSAGES,
    RESPONSES,
    TEXT,
    Dialect,
    engine,
    in_every_dialect,
)
from tests.gateway.kept import heard_over, loading

in_every_decoder = pytest.mark.parametrize(
    "decode", DECODERS, ids=[decode.__name__ for decode in DECODERS]
)


def chat(*deltas: dict[str, Any]) -> bytes:
    """Return a chat stream of these deltas."""
    last = len(deltas) - 1
    text = b"".join(
        b"data: %b\n\n"
        % json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "delta": delta,
                        "finish_reason": "stop" if number == last else None,
                    }
                ],
            }
        ).encode()
        for number, delta in enumerate(deltas)
    )
    return text + b"data: [DONE]\n\n"


ROLE = {"role": "assistant"}
# Deltas as engines send them.
CHATS = {
    "llama.cpp": chat(ROLE | {"content": None}, {"content": "hel"}, {"content": "lo"}, {}),
    "vLLM": chat(ROLE | {"content": ""}, {"content": "hel"}, {"content": "lo"}, {"content": ""}),
    "Ollama": chat(ROLE | {"content": "hel"}, ROLE | {"content": "lo"}, ROLE | {"content": ""}),
    "no role": chat({"content": "hel"}, {"content": "lo"}),
    "comments first": b": keepalive 1/2\n\n" + chat(ROLE | {"content": "hel"}, {"content": "lo"}),
}


async def kept_alive(dialect: Dialect, answer: bytes) -> Heard:
    """Return a stream that was kept alive while its model loaded."""

    async def infer(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for at in range(0, len(answer), 7):
            await response.write(answer[at : at + 7])
        return response

    async with loading(engine(answer=infer)) as (_, neuron, client):
        await client.send(dialect.request())
        return await heard_over(client, neuron)


def text_of(events: list[Event], dialect: Dialect) -> str:
    """Return the text of an answer."""
    text = ""
    for data in parsed(events):
        if dialect is CHAT:
            text += data["choices"][0]["delta"].get("content") or ""
        elif dialect is TEXT:
            text += data["choices"][0]["text"]
        elif dialect is MESSAGES and data["type"] == "content_block_delta":
            text += data["delta"]["text"]
        elif dialect is RESPONSES and data["type"] == "response.output_text.delta":
            text += data["delta"]
    return text


def without_ours(events: list[Event]) -> list[Event]:
    """Return the events without pings and the empty chunk."""
    empty = ('"delta":{}', '"delta":{"role":"assistant"}', '"text":"","logprobs":null')
    return [
        (name, data)
        for name, data in events
        if name != "ping" and not any(each in data for each in empty)
    ]


@pytest.mark.parametrize("eol", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@in_every_dialect
async def test_every_decoder_sees_every_event_of_a_kept_stream(
    dialect: Dialect, eol: bytes
) -> None:
    answer = dialect.answer.replace(b"\n", eol)
    heard = await kept_alive(dialect, answer)
    assert heard.body.endswith(answer)
    for decode in DECODERS:
        events = decode(heard.body.decode())
        assert "" not in [data for _, data in events], decode.__name__
        assert without_ours(events) == decode(answer.decode()), decode.__name__
        assert text_of(events, dialect) == "hello", decode.__name__


@pytest.mark.parametrize("name", CHATS)
async def test_kept_chat_has_the_role_the_id_and_the_text_of_the_engine(name: str) -> None:
    answer = CHATS[name]
    heard = await kept_alive(CHAT, answer)
    for decode in DECODERS:
        if decode is every_blank_line and answer.startswith(b":"):
            continue  # it fails at the engine's own comment
        events = decode(heard.body.decode())
        assert text_of(events, CHAT) == "hello", decode.__name__
        if not decode.__name__.endswith(("characters", "blocks")):
            chunks, plain = parsed(events), parsed(decode(answer.decode()))
            assert langchain_js(chunks) == langchain_js(plain)
            assert {chunk["id"] for chunk in chunks} == {"chatcmpl-1"}
            if name != "Ollama":  # its role comes with every chunk
                assert concatenated(chunks) == concatenated(plain)


async def test_chat_that_begins_with_its_role_gets_no_other_chunk() -> None:
    for name in ("llama.cpp", "vLLM", "comments first"):
        heard = await kept_alive(CHAT, CHATS[name])
        comments, _, rest = heard.body.partition(CHATS[name])
        assert rest == b""
        assert set(comments.splitlines()) == {b": cortexd loading m on a"}


@pytest.mark.parametrize(
    "answer",
    [
        b'data: {"error": {"message": "no"}}\n\n',
        b"data: {broken\n\n",
        b"data: [DONE]\n\n",
        b'data: {"choices": []}\n\n',
        b'data: {"choices": [{"delta": null}]}\n\n',
        b"data: " + b"x" * 20_000 + b"\n\n",
        b'data: {"choices": [{"delta": {"content": "hel',
        b"",
    ],
    ids=["error", "broken", "done", "no choice", "no delta", "long", "unfinished", "nothing"],
)
async def test_answers_of_another_kind_are_passed_unchanged(answer: bytes) -> None:
    heard = await kept_alive(CHAT, answer)
    assert heard.body.endswith(answer)
    assert heard.complete


@in_every_decoder
@pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.path for dialect in DIALECTS])
def test_error_after_a_cut_anywhere_is_an_event_of_its_own(
    dialect: Dialect, decode: Decode
) -> None:
    answer = dialect.answer
    is_named = dialect in (MESSAGES, RESPONSES)
    error = (b"event: error\n" if is_named else b"") + b'data: {"error":{}}\n\n'
    for at in range(len(answer) + 1):
        cut = answer[:at]
        whole = decode(answer[: answer.rfind(b"\n\n", 0, at) + 2].decode())
        for tail in (cut, cut[-200:]):
            said = cut + after(tail, error, is_whole=tail == cut)
            *before, (_, last) = decode(said.decode())
            assert json.loads(last) == {"error": {}}, cut[-40:]
            assert before[: len(whole)] == whole
            assert len(before) <= len(whole) + 1
            # Whoever looks at single lines sees an empty one, if the stream broke off there.
            assert decode is line_by_line or "" not in [data for _, data in before], cut[-40:]
