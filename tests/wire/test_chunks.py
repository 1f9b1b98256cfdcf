"""Empty chunks: which they are, and where one is needed."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.wire.chunks import MAX_HELD, FirstChunk, empty_chunk

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OWN = b"data: own\n\n"


def data(chunk: bytes) -> dict[str, object]:
    assert chunk.startswith(b"data: ")
    assert chunk.endswith(b"\n\n")
    found: dict[str, object] = json.loads(chunk[6:])
    return found


def passed(path: str, *pieces: bytes) -> bytes:
    first = FirstChunk(path, OWN)
    return b"".join(map(first.feed, pieces)) + first.rest()


def test_empty_chunk_has_neither_role_nor_text() -> None:
    assert data(empty_chunk(CHAT, "req_1", "m", 7)) == {
        "id": "chatcmpl-req_1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": None, "delta": {}}],
    }
    assert data(empty_chunk(TEXT, "req_1", "m", 7)) == {
        "id": "cmpl-req_1",
        "object": "text_completion",
        "created": 7,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": None, "text": "", "logprobs": None}],
    }


@pytest.mark.parametrize(
    ("path", "event", "before"),
    [
        (CHAT, b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n', b""),
        (CHAT, b'data: {"choices":[{"delta":{"role":"assistant"}}]}\r\n\r\n', b""),
        (CHAT, b'data: {"choices":[{"delta":{}}]}\n\n', b""),
        (CHAT, b": a comment\n\n", b""),
        (TEXT, b'data: {"choices":[{"text":""}]}\n\n', b""),
        (CHAT, b'data: {"choices":[]}\n\n', OWN),
        (CHAT, b"data: [DONE]\n\n", OWN),
        (CHAT, b'data: {"error":{}}\n\n', OWN),
        (TEXT, b"data: {\n\n", OWN),
        (CHAT, b'data: {"choices":[{"delta":[]}]}\n\n', OWN),
        (CHAT, b'data: {"choices":[7]}\n\n', OWN),
        (CHAT, b'data: {"choices":[{"delta":{}},{"delta":{}}]}\n\n', OWN),
    ],
)
def test_first_event_that_has_no_text_needs_no_chunk_before_it(
    path: str, event: bytes, before: bytes
) -> None:
    assert passed(path, event) == before + event


@pytest.mark.parametrize(
    ("choice", "delta"),
    [
        ({"delta": {"content": "x"}}, {}),
        ({"delta": {"role": "assistant", "content": "x"}}, {"role": "assistant"}),
        ({"delta": {"reasoning_content": "x"}}, {}),
        ({"delta": {"tool_calls": [{"index": 0}]}}, {}),
        ({"delta": {}, "finish_reason": "stop"}, {}),
    ],
)
def test_chunk_before_a_first_event_has_its_identity(
    choice: dict[str, object], delta: dict[str, object]
) -> None:
    chunk = {"id": "c1", "model": "e", "usage": {"prompt_tokens": 1}, "choices": [choice]}
    event = b"data: %b\n\n" % json.dumps(chunk).encode()
    before = passed(CHAT, event).removesuffix(event)
    assert data(before) == {
        "id": "c1",
        "model": "e",
        "choices": [{"index": 0, "finish_reason": None, "delta": delta}],
    }


@given(st.lists(st.integers(0, 90), max_size=9))
def test_first_event_is_held_back_until_it_is_whole_however_it_comes(cuts: list[int]) -> None:
    stream = b'data: {"id":"c1","choices":[{"text":"hel"}]}\n\ndata: {"id":"c1","choices":[]}\n\n'
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    first = FirstChunk(TEXT, OWN)
    said = b""
    for start, stop in pairwise(edges):
        if not said:
            said = first.feed(stream[start:stop])
        else:
            said += stream[start:stop]
        assert bool(said) == (stop >= stream.index(b"\n\n") + 2)
    assert said.endswith(stream)
    assert data(said.removesuffix(stream))["id"] == "c1"


def test_first_event_that_is_long_is_not_held_back_for_ever() -> None:
    first = FirstChunk(CHAT, OWN)
    assert first.feed(b"data: " + b"x" * MAX_HELD).startswith(OWN + b"data: x")
    assert first.rest() == b""
