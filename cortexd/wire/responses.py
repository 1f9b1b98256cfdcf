"""Streams of the Responses API: reads one that broke off, and writes the gateway's last events.

A stream has one response id and rising sequence numbers from its first event to its last, whether
an engine or the gateway writes it: OpenAI's `responses.stream()` raises on anything else.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Final

import msgspec

from cortexd.wire import sse

PATH: Final = "/v1/responses"
ITEM_PATH: Final = "/v1/responses/{id}"  # for logs and metrics, whatever the id
PATHS: Final = frozenset({PATH, ITEM_PATH})

_RESPONSE: Final = re.compile(rb'"response"\s*:\s*\{')
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]+)"')
_USUAL_ID: Final = re.compile(rb'"id"\s*:\s*"(resp[_-][A-Za-z0-9_.:-]{1,250})"')
_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})\b')
_LARGE: Final = 2**31 - 1
# Required fields of a response besides id, model, time and status (OpenAI's OpenAPI description).
_REQUIRED: Final[dict[str, Any]] = {
    "object": "response",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "output": [],
    "parallel_tool_calls": True,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "usage": None,
}


class _Continuation(msgspec.Struct):
    """The field of a request that names the response it continues."""

    previous_response_id: str | None = None


class _Lifecycle(msgspec.Struct):
    """An event that carries the whole response."""

    response: dict[str, Any]


_decode: Final = msgspec.json.Decoder(_Lifecycle).decode
_decode_continuation: Final = msgspec.json.Decoder(_Continuation).decode


def response_id(head: bytes) -> str | None:
    """Return the id of the response from the first bytes of an answer, streamed or not."""
    found = _USUAL_ID.search(head)
    if found is None:
        start = _RESPONSE.search(head)
        found = _ID.search(head, start.end() if start else 0)
    return found[1].decode(errors="replace") if found and len(found[1]) <= 256 else None


def continued_response(body: bytes) -> str | None:
    """Return the `previous_response_id` of a request, if it has one."""
    if b'"previous_response_id"' not in body:
        return None
    try:
        return _decode_continuation(body).previous_response_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def failure(
    error: dict[str, Any],
    *,
    request_id: str,
    model: str,
    now: int,
    head: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """Return the events that end a stream as failed.

    error: of the response; its `code` and `message` are required.
    head, tail: the first and the last bytes that were sent of the engine's stream; equal if it
        was short. Without an event in them a `response.created` comes first.
    now: seconds since the epoch.
    """
    whole = _first_event(head)
    # If the head is only a part of the stream, its first event may be longer than it.
    has_begun = whole is not None or head != tail
    own = {"id": f"resp_{request_id}", "created_at": now, "model": model} | _REQUIRED
    response = own | _begun(whole, head)
    number = _next_number(head, tail)
    events = b""
    if not has_begun:
        events = _event("response.created", response | {"status": "in_progress"}, number)
        number += 1
    failed = response | {"status": "failed", "error": error}
    return events + _event("response.failed", failed, number)


def _first_event(head: bytes) -> bytes | None:
    """Return the data of the first whole event; an engine may send comments before it."""
    at = 0
    for boundary in sse.BOUNDARY.finditer(head):
        if data := sse.data_of(head[at : boundary.end()]):
            return data
        at = boundary.end()
    return None


def _begun(event: bytes | None, head: bytes) -> dict[str, Any]:
    """Return the engine's own response from its first event; only the id if that event is cut."""
    if event is not None:
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = _decode(event).response
            return {name: value for name, value in found.items() if value is not None}
    start = _RESPONSE.search(head)
    found_id = _ID.search(head, start.end()) if start else None
    return {"id": found_id[1].decode(errors="replace")} if found_id else {}


def _next_number(head: bytes, tail: bytes) -> int:
    """Return the sequence number after the last one; a larger one if `tail` does not show it."""
    if numbers := _NUMBER.findall(tail):
        return int(numbers[-1]) + 1
    return _LARGE if _NUMBER.search(head) else 0


def _event(kind: str, response: dict[str, Any], number: int) -> bytes:
    event = {"type": kind, "response": response, "sequence_number": number}
    return sse.event(kind, msgspec.json.encode(event))
