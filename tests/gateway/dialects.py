"""The streams that have keep-alives: how each is asked for, what an engine answers, what the
gateway says in it by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import pytest
from aiohttp import web

from tests.fakes import FakeNeuron
from tests.functional.raw import Heard, post

PIECE: Final = 7  # bytes that the engine writes at once: events arrive in pieces


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of them.

    fields: of the request, besides the model. answer: the engine's whole stream.
    alive: what the gateway says while the model is loading, all of it.
    ends: whatever says that an answer is whole.
    """

    path: str
    fields: dict[str, Any]
    answer: bytes
    alive: re.Pattern[bytes]
    ends: tuple[bytes, ...]

    def request(
        self, *headers: str, model: str = "m", version: str = "1.1", **fields: Any
    ) -> bytes:
        """It, in bytes, asking for a stream."""
        body = {"model": model, "stream": True} | self.fields | fields
        return post(json.dumps(body).encode(), *headers, path=self.path, version=version)

    def code(self, refused: bytes) -> str:
        """What went wrong, in the words of this dialect; `refused`: the error event."""
        *_, last = refused.strip().split(b"\n\n")
        *_, data = last.partition(b"data: ")
        event = json.loads(data)
        match self.path:
            case "/v1/messages":
                assert last.startswith(b"event: error\n")
                assert event["type"] == "error"
                return str(event["error"]["type"])
            case "/v1/responses":
                assert last.startswith(b"event: response.failed\n")
                assert event["type"] == "response.failed"
                assert event["response"]["status"] == "failed"
                return str(event["response"]["error"]["code"])
            case _:
                return str(event["error"]["code"])

    def split(self, body: bytes) -> tuple[bytes, bytes]:
        """What the gateway said to keep the caller, and what followed."""
        begun = self.alive.match(body)
        said = begun.group() if begun else b""
        return said, body[len(said) :]


def _events(*events: dict[str, Any], named: bool) -> bytes:
    said = b""
    for event in events:
        said += b"event: %b\n" % event["type"].encode() if named else b""
        said += b"data: %b\n\n" % json.dumps(event).encode()
    return said


def _response(status: str, output: list[Any]) -> dict[str, Any]:
    return {
        "id": "resp_engine",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": status,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _numbered(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


def _chat(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def _text(text: str, finish: str | None) -> dict[str, Any]:
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": None}],
    }


_PART: Final = {"type": "output_text", "text": "hello", "annotations": []}
_ITEM: Final = {"id": "msg_1", "type": "message", "role": "assistant"}
_WHERE: Final = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
_DONE: Final = b"data: [DONE]\n\n"
_COMMENT: Final = rb": cortexd (?:loading|waiting for) [^\n]*\n"
_ALIVE: Final = rb"(?:(?:%b)+(?:data: [^\n]*\"choices\":\[\{%b\}\]\}\n\n)?)?"
_EMPTY_DELTA: Final = rb'"index":0,"finish_reason":null,"delta":\{(?:"role":"assistant")?\}'
_EMPTY_TEXT: Final = rb'"index":0,"finish_reason":null,"text":"","logprobs":null'
_HI: Final = [{"role": "user", "content": "hi"}]

CHAT: Final = Dialect(
    "/v1/chat/completions",
    {"messages": _HI},
    _events(_chat({"content": "hel"}, None), _chat({"content": "lo"}, "stop"), named=False) + _DONE,
    re.compile(_ALIVE % (_COMMENT, _EMPTY_DELTA)),
    (b"[DONE]",),
)
TEXT: Final = Dialect(
    "/v1/completions",
    {"prompt": "hi"},
    _events(_text("hel", None), _text("lo", "stop"), named=False) + _DONE,
    re.compile(_ALIVE % (_COMMENT, _EMPTY_TEXT)),
    (b"[DONE]",),
)
MESSAGES: Final = Dialect(
    "/v1/messages",
    {"messages": _HI, "max_tokens": 9},
    _events(
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 7, "output_tokens": 1},
            },
        },
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "hello"},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 2},
        },
        {"type": "message_stop"},
        named=True,
    ),
    re.compile(rb'(?:event: ping\ndata: \{"type": "ping"\}\n\n)*'),
    (b"message_stop",),
)
RESPONSES: Final = Dialect(
    "/v1/responses",
    {"input": "hi"},
    _events(
        *_numbered(
            [
                {"type": "response.created", "response": _response("in_progress", [])},
                {"type": "response.in_progress", "response": _response("in_progress", [])},
                {
                    "type": "response.output_item.added",
                    "output_index": 0,
                    "item": _ITEM | {"status": "in_progress", "content": []},
                },
                {"type": "response.content_part.added", "part": _PART | {"text": ""}} | _WHERE,
                {"type": "response.output_text.delta", "delta": "hello"} | _WHERE,
                {"type": "response.output_text.done", "text": "hello"} | _WHERE,
                {"type": "response.content_part.done", "part": _PART} | _WHERE,
                {
                    "type": "response.output_item.done",
                    "output_index": 0,
                    "item": _ITEM | {"status": "completed", "content": [_PART]},
                },
                {
                    "type": "response.completed",
                    "response": _response(
                        "completed", [_ITEM | {"status": "completed", "content": [_PART]}]
                    ),
                },
            ]
        ),
        named=True,
    ),
    re.compile(rb"(?:event: message\n(?:%b)+)?" % _COMMENT),
    (b"response.completed", b"[DONE]"),
)

DIALECTS: Final = (CHAT, TEXT, MESSAGES, RESPONSES)
in_every_dialect = pytest.mark.parametrize(
    "dialect", DIALECTS, ids=("chat", "text", "messages", "responses")
)

Infer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answer in whatever dialect the request is."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    said = next(dialect.answer for dialect in DIALECTS if dialect.path == request.path)
    for at in range(0, len(said), PIECE):
        await response.write(said[at : at + PIECE])
    return response


def engine(models: dict[str, Any] | None = None, answer: Infer = infer) -> FakeNeuron:
    """A neuron that speaks every dialect, and whose loads wait until they are let go."""
    neuron = FakeNeuron(models)
    neuron.infer = answer
    neuron.release.clear()
    return neuron


def assert_ended_well(heard: Heard) -> None:
    """As HTTP ends, whatever was in it."""
    assert heard.fault is None
    assert heard.complete
    assert heard.raw.endswith(b"0\r\n\r\n")
