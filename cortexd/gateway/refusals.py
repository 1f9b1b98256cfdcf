"""A Refusal becomes the caller's error envelope: the only place that knows both dialects' words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from aiohttp import web

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.proxy.encodings import ACCEPTED
from cortexd.wire import anthropic, openai

Dialect = Literal["openai", "anthropic"]

_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OVERLOADED: Final = 529  # Anthropic's own status for what HTTP calls 503
# Refusals with a status of their own for Anthropic's clients. Claude Code estimates a count after
# any error, but its SDK repeats a request that ended with a 5xx first.
_ANTHROPIC_STATUSES: Final[Mapping[str, int]] = {errors.MODEL_NOT_LOADED.code: 404}


def dialect_of(path: str) -> Dialect:
    """Whose words a caller of this path understands."""
    return "anthropic" if path == "/v1/messages" or path.startswith("/v1/messages/") else "openai"


def status_of(refusal: Refusal, dialect: Dialect) -> int:
    """The HTTP status of a refusal on a face of that dialect."""
    status = refusal.kind.status
    if dialect != "anthropic":
        return status
    status = _ANTHROPIC_STATUSES.get(refusal.kind.code, status)
    return _OVERLOADED if status == 503 else status


def anthropic_type(status: int) -> str:
    """Return Anthropic's type of an error with that status."""
    return _ANTHROPIC_TYPES.get(status, _type_of(status))


def openai_type(status: int) -> str:
    """Return OpenAI's type of an error with that status."""
    return "rate_limit_error" if status == 429 else _type_of(status)


def _type_of(status: int) -> str:
    return "invalid_request_error" if status < 500 else "api_error"


def error_object(refusal: Refusal, dialect: Dialect) -> dict[str, Any]:
    """Return the error itself, without the envelope of its dialect."""
    status = refusal.kind.status
    if dialect == "anthropic":
        status = _ANTHROPIC_STATUSES.get(refusal.kind.code, status)
        return msgspec.structs.asdict(anthropic.Error(anthropic_type(status), refusal.message))
    return msgspec.structs.asdict(
        openai.Error(refusal.message, openai_type(status), refusal.param, refusal.kind.code)
    )


def envelope(refusal: Refusal, dialect: Dialect, request_id: str) -> bytes:
    """The JSON body that says it."""
    error = error_object(refusal, dialect)
    if dialect == "anthropic":
        return msgspec.json.encode({"error": error, "request_id": request_id, "type": "error"})
    return msgspec.json.encode({"error": error})


def answer(refusal: Refusal, dialect: Dialect, request_id: str) -> web.Response:
    """The whole response."""
    response = web.Response(
        status=status_of(refusal, dialect),
        body=envelope(refusal, dialect, request_id),
        content_type="application/json",
        headers={"x-cortex-code": refusal.kind.code} | own_headers(dialect, request_id),
    )
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    if not refusal.kind.should_retry:
        response.headers["x-should-retry"] = "false"
    if refusal.allow:
        response.headers["Allow"] = ", ".join(refusal.allow)
    if refusal.kind is errors.UPGRADE_REQUIRED:  # names the protocol to use: RFC 9110, 15.5.22
        response.headers.update({"Connection": "Upgrade", "Upgrade": "HTTP/1.1"})
    if refusal.kind is errors.UNSUPPORTED_ENCODING:
        response.headers["Accept-Encoding"] = ACCEPTED
    if refusal.kind in (errors.REQUEST_TOO_LARGE, errors.BAD_REQUEST, errors.OVERLOADED):
        response.force_close()  # what is left of the request is not worth reading
    return response


def own_headers(dialect: Dialect, request_id: str) -> dict[str, str]:
    """Return the fields of every answer, with the request id under each name the dialect has.

    Any answer may depend on the requesting page, so no cache may give one page another's.
    """
    headers = {"Server": "cortexd", "Vary": "Origin", "x-request-id": request_id}
    return headers | {"request-id": request_id} if dialect == "anthropic" else headers


def own_lines(dialect: Dialect, request_id: str) -> bytes:
    """The same as lines of a head; a request id needs no escaping."""
    lines = f"Server: cortexd\r\nVary: Origin\r\nx-request-id: {request_id}\r\n"
    return (lines + f"request-id: {request_id}\r\n" if dialect == "anthropic" else lines).encode()
