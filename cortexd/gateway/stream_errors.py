"""Errors on an event stream that is open: its last event, in the caller's dialect.

Never anything that a client takes for the end of a whole answer: no `[DONE]`, `message_stop` or
`response.completed`.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from cortexd.errors import Refusal
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.refusals import Dialect, anthropic_type, error_object, openai_type
from cortexd.proxy.splice import Splice
from cortexd.wire import chunks, responses, sse
from cortexd.wire.neuron import fault_text

# OpenAI's code for a prompt that it refuses, used if the engine gives none.
_INVALID_PROMPT: Final = "invalid_prompt"


def refusal_event(refusal: Refusal, inbound: Inbound, splice: Splice) -> bytes:
    """Return the event for a refusal of the gateway."""
    return _last_event(error_object(refusal, inbound.dialect), inbound, splice)


def rejection_event(status: int, content: bytes, inbound: Inbound, splice: Splice) -> bytes:
    """Return the event for an engine's 4xx: its own error, as an error of the request.

    content: the body of its answer, possibly cut.
    """
    error = _engine_error(status, content, inbound.dialect)
    if inbound.path in responses.PATHS and not isinstance(error.get("code"), str):
        error["code"] = _INVALID_PROMPT
    return _last_event(error, inbound, splice)


def ends_properly(path: str) -> bool:
    """Return whether a stream that broke off ends as HTTP requires after its last event.

    Only if that event says beyond doubt that there is no whole answer: `response.failed`.
    """
    return path in responses.PATHS


def _engine_error(status: int, content: bytes, dialect: Dialect) -> dict[str, Any]:
    if content.startswith((b"data:", b"event:")):  # some engines send even a 4xx as a stream
        content = sse.data_of(content)
    message, code = fault_text(content)
    error: dict[str, Any] = {}
    try:
        answer = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        inner = answer.get("error")
        if isinstance(inner, dict):
            error = inner
        elif isinstance(answer.get("message"), str):  # vLLM before 0.10: no envelope
            error = {name: answer[name] for name in ("message", "param", "code") if name in answer}
        elif code is not None:
            error = {"code": code}
    if not isinstance(error.get("message"), str):
        error["message"] = message or f"The engine answered {status}."
    if dialect == "anthropic":
        return error | {"type": anthropic_type(status)}
    return {"param": None, "code": None} | error | {"type": openai_type(status)}


def _last_event(error: dict[str, Any], inbound: Inbound, splice: Splice) -> bytes:
    path, has_begun = inbound.path, splice.first_at is not None
    head = tail = b""
    if has_begun:
        tail = splice.tail
        head = splice.first or tail
    if inbound.dialect == "anthropic":
        envelope = {"type": "error", "error": error, "request_id": inbound.request_id}
        event = sse.event("error", msgspec.json.encode(envelope))
    elif path in responses.PATHS:
        event = responses.failure(
            error,
            request_id=inbound.request_id,
            model=inbound.model or "",
            now=int(time.time()),
            head=head,
            tail=tail,
        )
    else:
        event = b"data: %b\n\n" % msgspec.json.encode({"error": error})
    if has_begun:
        return sse.after(tail, event, is_whole=not splice.first)
    if path not in chunks.PATHS or splice.opening is None:
        return event
    # Comments precede it.
    model, now = inbound.model or "", int(time.time())
    return chunks.empty_chunk(path, inbound.request_id, model, now) + event
