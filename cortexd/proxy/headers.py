"""Which headers cross the gateway, in each direction (RFC 9110, section 7.6.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from cortexd.proxy.credentials import is_credential

Fields = Sequence[tuple[bytes, bytes]]  # names as they were spelt

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# The client's secrets are for the gateway, not for the nodes; length, host and encoding are
# stated anew, because the request that goes upstream is a new one. Which pages may ask is
# decided at the gateway; engines that see where a page is from would decide again, and refuse it.
_NOT_UPSTREAM: Final = _HOP_BY_HOP | {
    b"accept-encoding",
    b"authorization",
    b"content-encoding",
    b"content-length",
    b"expect",
    b"host",
    b"origin",
    b"sec-fetch-dest",
    b"sec-fetch-mode",
    b"sec-fetch-site",
    b"sec-fetch-storage-access",
    b"sec-fetch-user",
    b"x-request-id",
}
# The gateway answers under its own name and its own request id, and at its own time, as nginx does;
# which web pages may read its answers is not the nodes' to say.
_NOT_TO_CLIENT: Final = _HOP_BY_HOP | {
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-expose-headers",
    b"access-control-max-age",
    b"authorization",
    b"content-length",
    b"date",
    b"request-id",
    b"server",
    b"set-cookie",
    b"x-request-id",
}
# Nothing on the way may hold an event back: neither a cache nor an nginx in front.
UNBUFFERED: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_NOT_TO_CLIENT_OF_EVENTS: Final = _NOT_TO_CLIENT | {b"cache-control", b"x-accel-buffering"}
_OURS: Final = b"x-cortex-"
_LONGEST: Final = 64  # bytes of a name that is worth remembering
_MOST: Final = 512  # names that are remembered
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))


class _Kept(dict[bytes, bool | None]):
    """Cache of whether a field is kept, by its name as it is spelt: few names ever occur.

    None: its value decides (`Vary`), or names others that are not kept (`Connection`).
    drops: whether a name in lower case is dropped though it is not in `dropped`.
    """

    def __init__(
        self, dropped: frozenset[bytes], drops: Callable[[bytes], bool] | None = None
    ) -> None:
        super().__init__()
        self.dropped = dropped
        self.drops = drops

    def __missing__(self, name: bytes) -> bool | None:
        low = name.lower()
        is_kept: bool | None = low not in self.dropped and not low.startswith(_OURS)
        if is_kept and self.drops is not None:
            is_kept = not self.drops(low)
        if low in _JUDGED_BY_VALUE:
            is_kept = None
        if len(name) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[name] = is_kept
        return is_kept


_JUDGED_BY_VALUE: Final = frozenset({b"connection", b"vary"})
# What a Connection field says that names no other field.
_NAMES_NONE: Final = frozenset({b"keep-alive", b"close", b""})

_UPSTREAM: Final = _Kept(_NOT_UPSTREAM, is_credential)
_UPSTREAM_UNTYPED: Final = _Kept(_NOT_UPSTREAM | {b"content-type"}, is_credential)
_CLIENT: Final = _Kept(_NOT_TO_CLIENT)
_CLIENT_OF_EVENTS: Final = _Kept(_NOT_TO_CLIENT_OF_EVENTS)


def request_head(
    method: str,
    target: str,
    netloc: str,
    length: int,
    fields: Fields,
    own: bytes,
    *,
    is_mistyped: bool,
) -> bytes:
    """Return the head of a request to an upstream: the client's fields that may cross, then `own`.

    length: bytes of the body. is_mistyped: see `proxy.call.Call`.
    """
    return b"%bContent-Length: %d\r\n%b%b\r\n" % (
        _first_lines(method, target, netloc),
        length,
        upstream_json_lines(fields) if is_mistyped else upstream_lines(fields),
        own,
    )


@lru_cache(maxsize=256)
def _first_lines(method: str, target: str, netloc: str) -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: {netloc}\r\nAccept-Encoding: identity\r\n".encode()


def upstream_lines(fields: Fields) -> bytes:
    """What of the client's fields goes upstream, as lines."""
    return _lines(fields, _UPSTREAM)


def upstream_json_lines(fields: Fields) -> bytes:
    """Return `upstream_lines` with the type application/json, for a body that was read as JSON.

    curl sends application/x-www-form-urlencoded by default, which engines refuse.
    """
    for name, value in fields:
        if name.lower() == b"content-type" and is_json(value.decode("latin-1")):
            return _lines(fields, _UPSTREAM)
    return _lines(fields, _UPSTREAM_UNTYPED) + b"Content-Type: application/json\r\n"


def is_json(content_type: str) -> bool:
    """Return whether a Content-Type announces JSON to an engine, which takes no `+json` types."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


def client_lines(fields: Fields, own: bytes = b"", *, is_event_stream: bool) -> bytes:
    """Return the upstream's fields that go to the client, as lines, followed by `own`.

    `Vary: Origin` is not passed on: `own` says it.
    """
    if is_event_stream:
        return _lines(fields, _CLIENT_OF_EVENTS) + _UNBUFFERED + own
    return _lines(fields, _CLIENT) + own


def lines(fields: Mapping[str, str]) -> bytes:
    """Fields of our own; what no header can hold, as in a model's name, is percent-encoded."""
    return "".join(
        f"{name}: {quote(value, safe=_PRINTABLE)}\r\n" for name, value in fields.items()
    ).encode()


_UNBUFFERED: Final = lines(UNBUFFERED)


def _lines(fields: Fields, kept: _Kept) -> bytes:
    said: list[bytes] = []
    for name, value in fields:
        if is_kept := kept[name]:
            said += (name, b": ", value, b"\r\n")
        elif is_kept is None and value not in _NAMES_NONE:
            if name.lower() == b"vary":
                if value != b"Origin":  # every answer of the gateway says that
                    said += (name, b": ", value, b"\r\n")
                continue
            words = _words(value)
            if not words <= _NAMES_NONE and not words <= kept.dropped:
                # Of all of them: there may be thousands.
                named = (_words(value) for name, value in fields if name.lower() == b"connection")
                return _lines(fields, _Kept(kept.dropped.union(*named), kept.drops))
    return b"".join(said)


def _words(value: bytes) -> set[bytes]:
    return {word.strip() for word in value.lower().split(b",")}
