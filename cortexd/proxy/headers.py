"""Which headers cross the gateway, in each direction (RFC 9110, section 7.6.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Fields = list[tuple[bytes, bytes]]  # names as they were spelt

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
# stated anew, because the request that goes upstream is a new one.
_NOT_UPSTREAM: Final = _HOP_BY_HOP | {
    b"accept-encoding",
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"host",
    b"x-api-key",
    b"x-request-id",
}
# The gateway answers under its own name and its own request id.
_NOT_TO_CLIENT: Final = _HOP_BY_HOP | {
    b"content-length",
    b"request-id",
    b"server",
    b"set-cookie",
    b"x-request-id",
}
_OURS: Final = b"x-cortex-"


def upstream_fields(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """What of the client's fields goes upstream."""
    return _kept(fields, _NOT_UPSTREAM)


def client_fields(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """What of the upstream's fields goes to the client."""
    return _kept(fields, _NOT_TO_CLIENT)


def _kept(fields: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Fields:
    kept, named = [], b""
    for field in fields:
        name = field[0].lower()
        if name == b"connection":
            named += b"," + field[1].lower()
        elif name not in dropped and not name.startswith(_OURS):
            kept.append(field)
    if named.strip(b", ") in (b"", b"keep-alive", b"close"):
        return kept
    words = {word.strip() for word in named.split(b",")}
    return [field for field in kept if field[0].lower() not in words]
