"""What the measured requests and answers are, byte for byte: the upstream sends these, the load
generator holds every answer against them."""

from __future__ import annotations

import json
from functools import cache
from typing import Final

MODEL: Final = "bench"
COLD: Final = "cold"  # in the catalogue of the gateway; on the node only after a load
PATH: Final = "/v1/chat/completions"
EVENT_SIZE: Final = 190  # bytes, as engines' events have
DONE: Final = b"data: [DONE]\n\n"

_USAGE: Final = {"prompt_tokens": 12, "completion_tokens": 100, "total_tokens": 112}


def question(model: str, *, stream: bool) -> bytes:
    """The body of a request."""
    content = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a terse assistant."},
            {"role": "user", "content": "Name three colours, one per line, and nothing else."},
        ],
        "stream": stream,
    }
    return json.dumps(content, separators=(",", ":")).encode()


def request(model: str, *, stream: bool) -> bytes:
    """A whole request, head and body, as a plain client sends it."""
    body = question(model, stream=stream)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: bench.local\r\nUser-Agent: bench\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def event(number: int, size: int = EVENT_SIZE) -> bytes:
    """The event of that number, `size` bytes long; no two of a stream are equal."""
    choice = {"index": 0, "delta": {"content": f" {number:05}"}, "finish_reason": None}
    short = _event([choice])
    return short.replace(b'"content":" ', b'"content":" ' + b"x" * max(0, size - len(short)))


def ending() -> bytes:
    """The event with the counts, and the mark of a whole stream."""
    return _event([], usage=_USAGE) + DONE


@cache
def stream(events: int, size: int = EVENT_SIZE) -> bytes:
    """The whole body of a streamed answer."""
    return b"".join(event(number, size) for number in range(events)) + ending()


@cache
def plain() -> bytes:
    """The body of an answer that is not streamed, of about 600 bytes."""
    message = {"role": "assistant", "content": "Red.\nGreen.\nBlue.\n" + "And so on. " * 30}
    answer = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_750_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def fault(body: bytes, *, events: int | None, size: int = EVENT_SIZE, exact: bool = True) -> str:
    """Why `body` is not the whole answer; empty when it is.

    events: of a stream; None for a plain answer.
    exact: every byte must be the upstream's; else (a gateway that writes its own JSON) the
    content and the marks must be there, each as often as it was sent.
    """
    whole = plain() if events is None else stream(events, size)
    if body == whole:
        return ""
    if exact:
        return f"{len(body)} bytes that are not the {len(whole)} sent"
    if events is None:
        return "" if body.count(b"And so on. ") == 30 else "the content is not whole"
    if not body.endswith(DONE) or body.count(DONE) != 1:
        return "no [DONE] at the end"
    found = sum(f'{number:05}"'.encode() in body for number in range(events))
    return "" if found == events else f"{found} events of {events}"


def _event(choices: list[dict[str, object]], **more: object) -> bytes:
    chunk = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1_750_000_000,
        "model": MODEL,
        "choices": choices,
        **more,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
